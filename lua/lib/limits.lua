--- lib limits: the most of a tensor that goes through Lua. While it does, the server serves nobody else; what is larger
-- goes by SET and GET. At these limits a call takes some 20 to 100 ms.

local limits = {
  BYTES = 4194304, -- of data
  VALUES = 10000, -- elements as text
  STRINGS = 100000, -- elements of a STRING tensor as bytes
}
