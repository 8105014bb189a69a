--- lib npy: the header of a .npy file, docs/protocol.md section 1.
--- @requires args dtypes guard

local npy = {}

npy.MAGIC = '\147NUMPY'
-- Bytes to read from the front of a key so that the header of nearly every tensor is among them.
-- 256, as GETRANGE takes them; as text: see INLINE_END in lib/inputs.lua.
npy.PREFIX_END = '255'
npy.MAX_RANK = 32

-- raw header -> header. Parsing costs some 20 look-ups, and a service sees few different headers. Bounded: when there
-- are NPY_CACHE_ENTRIES it is emptied, and a header longer than NPY_CACHE_BYTES is not kept.
local npy_cache, npy_cached = {}, 0
local NPY_CACHE_ENTRIES, NPY_CACHE_BYTES = 512, 512

--- Whether the first bytes of a value (six are enough) are those of a .npy file.
function npy.is_tensor(first6)
  return first6:sub(1, 6) == npy.MAGIC
end

-- The dims inside of "(1, 30)", or nil and what is wrong.
local function parse_shape(inside)
  local shape, at, comma = {}, 1, true
  while true do
    local digits, after = inside:match('^[ \t\n]*(%-?%d+)[ \t\n]*()', at)
    if not digits then
      break
    end
    local dim = args.int(digits)
    if digits:find('^%-') then
      return nil, 'dim ' .. args.printable(digits) .. ' is negative'
    elseif digits:find('^0%d') or not comma then
      return nil, 'the shape is not a tuple of numbers'
    elseif not dim then
      return nil, 'dim ' .. args.printable(digits) .. ' is too large'
    elseif #shape == npy.MAX_RANK then
      return nil, 'more than ' .. npy.MAX_RANK .. ' dims'
    end
    shape[#shape + 1] = dim
    comma = inside:sub(after, after) == ','
    at = comma and after + 1 or after
  end
  if not inside:find('^[ \t\n]*$', at) or (#shape == 1 and not comma) then
    return nil, 'the shape is not a tuple of numbers'
  end
  return shape
end

-- Reads the value of a field at a position -> value, position behind it; or nil, what is wrong.
local field_readers = {
  descr = function(text, at)
    local _, value, after = text:match('^([\'"])([^\'"]*)%1()', at)
    if value then
      return value, after
    end
    if text:find('^%[', at) then
      return nil, 'structured dtypes are not taken'
    end
    return nil, 'descr is not a string'
  end,
  fortran_order = function(text, at)
    local value, after = text:match('^(%w+)()', at)
    if value == 'True' then
      return nil, 'the data is in Fortran order: write it in C order (numpy.ascontiguousarray)'
    end
    if value ~= 'False' then
      return nil, 'fortran_order is not True or False'
    end
    return value, after
  end,
  shape = function(text, at)
    local inside, after = text:match('^%(([-%d, \t\n]*)%)()', at)
    if not inside then
      return nil, 'the shape is not a tuple of numbers'
    end
    local shape, problem = parse_shape(inside)
    return shape, shape and after or problem
  end,
}

-- The three fields of the dictionary, or nil and what is wrong. A grammar of its own: nothing is evaluated.
local function parse_dict(text)
  local fields = {}
  local at = text:match('^[ \t\n]*{[ \t\n]*()')
  while at and not text:find('^}[ \t\n]*$', at) do
    local _, name, value_at = text:match('^([\'"])([%w_]+)%1[ \t\n]*:[ \t\n]*()', at)
    if not name then
      at = nil
      break
    end
    if not field_readers[name] then
      return nil, "the header has an unknown key '" .. args.printable(name) .. "'"
    end
    if fields[name] then
      return nil, 'the header has ' .. name .. ' twice'
    end
    local value, after = field_readers[name](text, value_at)
    if not value then
      return nil, after
    end
    fields[name] = value
    at = text:match('^[ \t\n]*,[ \t\n]*()', after) or text:match('^[ \t\n]*()}', after)
  end
  if not at then
    return nil, 'the header is not a dictionary'
  end
  for _, name in ipairs({ 'descr', 'fortran_order', 'shape' }) do
    if not fields[name] then
      return nil, 'the header has no ' .. name
    end
  end
  return fields
end

local function bad_descr(descr)
  local quoted = "dtype '" .. args.printable(descr) .. "' "
  if descr:find('^>') then
    return quoted .. "is big-endian: write it little-endian (array.astype('<f4'))"
  elseif descr:find('^.?O') then
    return quoted .. 'means Python objects, which are never read'
  elseif descr:find('^.?U') then
    return quoted .. 'is UTF-32 text: write it as UTF-8 (numpy.char.encode)'
  end
  return quoted .. 'is none of ' .. dtypes.names
end

--- The number of elements of a shape, or nil where elements of itemsize bytes would be too many.
-- As in numpy, a 0 among the dims does not excuse the product of the others.
function npy.count(shape, itemsize)
  local nonzero, count = itemsize, 1
  for i = 1, #shape do
    local dim = shape[i]
    count = count * dim
    nonzero = dim > 0 and nonzero * dim or nonzero
    if nonzero > args.MAX_INT then
      return nil
    end
  end
  return count
end

-- tostring() would write large numbers with an exponent.
local function join(shape, separator)
  local dims = {}
  for i = 1, #shape do
    dims[i] = ('%.0f'):format(shape[i])
  end
  return table.concat(dims, separator)
end

--- A shape as text: '1,30'.
function npy.dims(shape)
  return join(shape, ',')
end

local function parse_header(raw)
  local fields, problem = parse_dict(raw:sub(11))
  if not fields then
    return nil, problem
  end
  local dtype, itemsize = dtypes.of_descr(fields.descr)
  if not dtype then
    return nil, bad_descr(fields.descr)
  end
  local count = npy.count(fields.shape, itemsize)
  if not count then
    return nil, 'the product of the dims is too large'
  end
  return {
    dtype = dtype.name, kind = dtype.kind, descr = dtype.kind == 'string' and fields.descr or dtype.descr,
    itemsize = itemsize, shape = fields.shape, dims = npy.dims(fields.shape), count = count,
    offset = #raw, nbytes = count * itemsize, total = #raw + count * itemsize,
  }
end

-- What is wrong with the first ten bytes of a file, or nil.
local function bad_front(prefix, total)
  if prefix:sub(1, 6) ~= npy.MAGIC:sub(1, total) then
    return 'not a .npy file: it does not begin with \\x93NUMPY'
  elseif total < 10 then
    return ('truncated: only %d bytes'):format(total)
  end
  local major, minor = prefix:byte(7, 8)
  if major ~= 1 or minor ~= 0 then
    return (".npy version %d.%d, only 1.0 is read"):format(major, minor)
  end
  return nil
end

--- Reads the header of a .npy file from its first bytes (at least 10, or all of them) and its length -> header;
-- or nil, what is wrong; or nil, what is wrong, n where the file may be right but its first n bytes are needed to tell.
-- A header is {dtype='FLOAT', kind='float', descr='<f4', itemsize=4, shape={1, 30}, dims='1,30', count=30, offset=128,
-- nbytes=120, total=248}. It is shared with the other callers: never change it.
function npy.parse(prefix, total)
  local low, high = prefix:byte(9, 10)
  local raw = high and prefix:sub(1, 10 + low + 256 * high) or ''
  local header = npy_cache[raw]
  if not header then
    local problem = bad_front(prefix, total)
    if problem then
      return nil, problem
    end
    local offset = 10 + low + 256 * high
    if offset > total then
      return nil, ('truncated: %d bytes, less than the header of %d'):format(total, offset)
    elseif offset > #prefix then
      return nil, 'only a part of the header was read', offset
    end
    header, problem = parse_header(raw)
    if not header then
      return nil, problem
    end
    if offset <= NPY_CACHE_BYTES then
      if npy_cached >= NPY_CACHE_ENTRIES then
        npy_cache, npy_cached = {}, 0
      end
      npy_cache[raw] = header
      npy_cached = npy_cached + 1
    end
  end
  if header.total ~= total then
    return nil, ('%.0f bytes of data where %s of shape (%s) has %.0f')
      :format(total - header.offset, header.dtype, header.dims, header.nbytes)
  end
  return header
end

--- Reads the header of the tensor in a key; raises NOTENSOR, WRONGTYPE or BADNPY.
function npy.inspect(key)
  local prefix = redis.pcall('GETRANGE', key, '0', npy.PREFIX_END)
  if type(prefix) == 'table' then
    if prefix.err:find('WRONGTYPE', 1, true) then
      raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds another type, not a tensor")
    end
    error(prefix, 0)
  end
  if not npy.is_tensor(prefix) then
    if prefix ~= '' or redis.call('EXISTS', key) == 1 then
      raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds a string that is not a tensor (a .npy file)")
    end
    raise('NOTENSOR', "there is no tensor at key '" .. args.printable(key) .. "'")
  end
  local total = redis.call('STRLEN', key)
  local header, problem, needed = npy.parse(prefix, total)
  if needed then
    header, problem = npy.parse(redis.call('GETRANGE', key, 0, needed - 1), total)
  end
  if not header then
    raise('BADNPY', "key '" .. args.printable(key) .. "': " .. problem)
  end
  return header
end

--- The header of a .npy file of this descr and shape, padded so that the data begins at a multiple of 64.
function npy.header(descr, shape)
  local text = ("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }")
    :format(descr, join(shape, ', ') .. (#shape == 1 and ',' or ''))
  local length = #text + 1 + (-(#text + 11)) % 64
  return npy.MAGIC .. '\1\0' .. string.char(length % 256, math.floor(length / 256))
    .. text .. (' '):rep(length - #text - 1) .. '\n'
end
