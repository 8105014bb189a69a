--- lib numbers: elements of tensors as text, exactly, in both directions.
--- @requires args dtypes guard
-- A Lua number is a double: it holds neither all 64-bit integers nor half floats, so these are packed by hand.

local numbers = {}

local TWO32 = 4294967296

-- Bytes of floats that have no decimal digits.
local SPECIAL = {
  FLOAT16 = { inf = '\0\124', ['-inf'] = '\0\252', nan = '\0\126' },
  FLOAT = { inf = '\0\0\128\127', ['-inf'] = '\0\0\128\255', nan = '\0\0\192\127' },
  DOUBLE = {
    inf = '\0\0\0\0\0\0\240\127', ['-inf'] = '\0\0\0\0\0\0\240\255', nan = '\0\0\0\0\0\0\248\127',
  },
}
local SPECIAL_NAMES = {
  ['inf'] = 'inf', ['+inf'] = 'inf', ['-inf'] = '-inf', ['nan'] = 'nan', ['+nan'] = 'nan', ['-nan'] = 'nan',
  ['infinity'] = 'inf', ['+infinity'] = 'inf', ['-infinity'] = '-inf',
}
-- The smallest magnitude that would be rounded to infinity: the largest finite number and half a step more.
local OVERFLOW = { FLOAT16 = 65520, FLOAT = 3.4028235677973366e38, DOUBLE = 1 / 0 }
local FORMATS = {}
for precision = 1, 17 do
  FORMATS[precision] = '%.' .. precision .. 'g'
end
-- Significant digits that a type always keeps, and those that tell all its numbers apart; below `normal` it keeps
-- fewer. Whole numbers up to `whole` are written without an exponent.
local DIGITS = {
  FLOAT16 = { kept = 3, enough = 5, normal = 6.103515625e-05, whole = 65504 },
  FLOAT = { kept = 6, enough = 9, normal = 1.1754943508222875e-38, whole = 16777216 },
  DOUBLE = { kept = 15, enough = 17, normal = 2.2250738585072014e-308, whole = 9007199254740992 },
}

-- x rounded to an integer, ties to the even one; x >= 0.
local function round_even(x)
  local below = math.floor(x)
  local rest = x - below
  if rest > 0.5 or (rest == 0.5 and below % 2 == 1) then
    return below + 1
  end
  return below
end

-- A finite number below OVERFLOW as a half float. Multiplying by powers of two is exact, so it is rounded once.
local function pack_half(x)
  local sign = (x < 0 or (x == 0 and 1 / x < 0)) and 32768 or 0
  x = math.abs(x)
  local mantissa, exponent = math.frexp(x)
  local bits
  if x == 0 or exponent < -13 then
    bits = round_even(x * 16777216)
  else
    -- A mantissa that rounds up to 2048 carries into the exponent, as it should.
    bits = (exponent + 13) * 1024 + round_even(mantissa * 2048)
  end
  bits = bits + sign
  return string.char(bits % 256, math.floor(bits / 256))
end

local function unpack_half(data, at)
  local low, high = data:byte(at, at + 1)
  local sign = high >= 128 and -1 or 1
  local exponent = math.floor(high / 4) % 32
  local mantissa = (high % 4) * 256 + low
  if exponent == 31 then
    return mantissa == 0 and sign / 0 or 0 / 0
  elseif exponent == 0 then
    return sign * mantissa * 2 ^ -24
  end
  return sign * (1024 + mantissa) * 2 ^ (exponent - 25)
end

local function pack_float(dtype, x)
  if dtype.pack then
    return struct.pack(dtype.pack, x)
  end
  return pack_half(x)
end

local function unpack_float(dtype, data, at)
  if dtype.pack then
    return (struct.unpack(dtype.pack, data, at))
  end
  return unpack_half(data, at)
end

-- Bytes of the float that text writes, or nil and what is wrong.
local function read_float(dtype, text)
  -- tonumber alone would take 0x10, spaces, and whatever else strtod knows.
  local x = string.find(text, '^[%d.eE+-]+$') and tonumber(text)
  if not x then
    local special = #text <= 9 and SPECIAL_NAMES[text:lower()]
    if special then
      return SPECIAL[dtype.name][special]
    end
    return nil, 'is not a decimal number'
  elseif math.abs(x) >= OVERFLOW[dtype.name] then
    return nil, 'overflows ' .. dtype.name
  end
  return pack_float(dtype, x)
end

-- Two's complement of 64 bits out of decimal digits; six at a time, so that products stay exact in a double.
local function pack64(digits, negative)
  local high, low = 0, 0
  for at = 1 - (-#digits % 6), #digits, 6 do
    low = low * 1000000 + tonumber(digits:sub(math.max(at, 1), at + 5))
    local carry = math.floor(low / TWO32)
    low = low - carry * TWO32
    high = high * 1000000 + carry
  end
  if negative then
    high = low == 0 and TWO32 - high or TWO32 - 1 - high
    low = low == 0 and 0 or TWO32 - low
    high = high == TWO32 and 0 or high
  end
  return struct.pack('<I4I4', low, high)
end

-- Bytes of the integer that text writes, or nil and what is wrong.
local function read_int(dtype, text)
  if not text:find('^[+-]?%d+$') then
    return nil, 'is not an integer in decimal digits'
  end
  local sign = text:sub(1, 1)
  local digits = text:sub(text:find('[1-9]') or #text + 1)
  local limit = sign == '-' and dtype.low or dtype.high
  -- Digit strings of the same length compare as the numbers do.
  if #digits > #limit or (#digits == #limit and digits > limit) then
    if dtype.kind == 'bool' then
      return nil, 'is not 0 or 1'
    end
    local low = dtype.low == '0' and '0' or '-' .. dtype.low
    return nil, 'is out of range: ' .. dtype.name .. ' holds ' .. low .. ' to ' .. dtype.high
  end
  if dtype.pack then
    return struct.pack(dtype.pack, tonumber((sign == '-' and '-0' or '0') .. digits))
  end
  return pack64(digits, sign == '-')
end

-- Elements that are packed together: one call and one string for many.
numbers.PACKED = 64
numbers.FORMATS = {}

-- The bytes of floats that are all plain numbers in range, as nearly always; else nil, and one by one they show what is wrong.
function numbers.pack_plain(dtype, texts, first, count)
  local find, number, overflow = string.find, tonumber, OVERFLOW[dtype.name]
  local values = {}
  for i = 1, count do
    local text = texts[first + i - 1]
    local x = find(text, '^[%d.eE+-]+$') and number(text)
    if not x or x >= overflow or x <= -overflow then
      return nil
    end
    values[i] = x
  end
  local parts = {}
  for from = 1, count, numbers.PACKED do
    local size = math.min(numbers.PACKED, count - from + 1)
    local key = dtype.pack .. size
    local format = numbers.FORMATS[key]
    if not format then
      format = '<' .. string.rep(string.sub(dtype.pack, 2), size)
      numbers.FORMATS[key] = format
    end
    parts[#parts + 1] = struct.pack(format, unpack(values, from, from + size - 1))
  end
  return table.concat(parts)
end

--- The bytes of count elements that texts[first] and the following write; raises BADVALUE. `named(i)` says what the i-th
-- of them is; without it, its number.
function numbers.encode(dtype, texts, first, count, named)
  local read = dtype.kind == 'float' and read_float or read_int
  local parts = {}
  if read == read_float and dtype.pack then
    local data = numbers.pack_plain(dtype, texts, first, count)
    if data then
      return data
    end
  end
  for i = 1, count do
    local bytes, problem = read(dtype, texts[first + i - 1])
    if not bytes then
      raise('BADVALUE', ("%s, '%s', %s"):format(named and named(i) or 'value ' .. i, args.printable(texts[first + i - 1]), problem))
    end
    parts[i] = bytes
  end
  return table.concat(parts)
end

-- As few digits as read back as the same number.
local function write_float(dtype, data, at)
  local x = unpack_float(dtype, data, at)
  if x ~= x then
    return 'nan'
  elseif x == 1 / 0 or x == -1 / 0 then
    return x > 0 and 'inf' or '-inf'
  end
  local digits = DIGITS[dtype.name]
  if math.abs(x) <= digits.whole and x == math.floor(x) then
    return ('%.0f'):format(x)
  end
  local text
  for precision = math.abs(x) < digits.normal and 1 or digits.kept, digits.enough do
    text = FORMATS[precision]:format(x)
    local back = tonumber(text)
    if math.abs(back) < OVERFLOW[dtype.name] and unpack_float(dtype, pack_float(dtype, back), 1) == x then
      break
    end
  end
  return text
end

-- A reply of the server holds an integer exactly up to 2^53, the reach of a Lua number; larger ones go as their digits.
local function write64(dtype, data, at)
  local low, high = struct.unpack('<I4I4', data, at)
  local sign = ''
  if dtype.low ~= '0' and high >= TWO32 / 2 then
    sign = '-'
    high = low == 0 and TWO32 - high or TWO32 - 1 - high
    low = low == 0 and 0 or TWO32 - low
  end
  if high < 2097152 or (high == 2097152 and low == 0) then
    local magnitude = high * TWO32 + low
    return sign == '-' and -magnitude or magnitude
  end
  local text = ''
  while high > 0 or low > 0 do
    local rest = high % 1000000
    high = (high - rest) / 1000000
    low = rest * TWO32 + low
    rest = math.fmod(low, 1000000)
    low = (low - rest) / 1000000
    text = ('%06d'):format(rest) .. text
  end
  return sign .. text:gsub('^0+', '')
end

--- The elements of data as an array for a reply: integers where a reply can hold them exactly, else text.
function numbers.decode(dtype, data)
  local values = {}
  local size = dtype.itemsize
  for i = 1, #data / size do
    local at = (i - 1) * size + 1
    if dtype.kind == 'float' then
      values[i] = write_float(dtype, data, at)
    elseif dtype.pack then
      values[i] = struct.unpack(dtype.pack, data, at)
    else
      values[i] = write64(dtype, data, at)
    end
  end
  return values
end
