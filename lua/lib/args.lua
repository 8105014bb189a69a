--- lib args: reading arguments that anybody may have sent.
-- Only syntax and string methods may be used outside functions: while a library loads, the server
-- offers no global but `redis`, neither here nor in any other file of lua/.

local args = {}

-- Above it a Lua number skips integers.
args.MAX_INT = 9007199254740991

-- The counts of arguments are few and small: they are remembered, at most those of three digits.
local short_ints = {}

--- The number that s writes in decimal digits, or nil where s is anything else or the number is not in min .. max.
-- Not tonumber(s): that takes 0x10, 1e3, nan and spaces.
function args.int(s, min, max)
  local n = short_ints[s]
  if not n then
    if #s > 16 or not s:find('^%d+$') then
      return nil
    end
    n = tonumber(s)
    if #s <= 3 then
      short_ints[s] = n
    end
  end
  if n < (min or 0) or n > (max or args.MAX_INT) then
    return nil
  end
  return n
end

--- s as a keyword, in capitals; '' if s is too long to be one (it may be a blob of megabytes).
function args.keyword(s)
  return #s > 32 and '' or s:upper()
end

--- Whether text may be the name of a device.
function args.is_device(text)
  return #text <= 32 and text:find('^[A-Z0-9:_.-]+$') ~= nil
end

--- Whether list is a list of strings, of at least `least` and at most `most` (nil: any number) of them.
function args.is_texts(list, least, most)
  if type(list) ~= 'table' or #list < least or (most and #list > most) then
    return false
  end
  for n = 1, #list do
    if type(list[n]) ~= 'string' then
      return false
    end
  end
  return true
end

local function escaped(c)
  return ('\\x%02x'):format(c:byte())
end

--- s made fit for the text of an error, to stand in quotes: one line of ASCII, cut off after max (64) bytes of s.
function args.printable(s, max)
  max = max or 64
  local head = s:sub(1, max):gsub('[^\32-\126]', escaped)
  return #s > max and head .. '...' or head
end
