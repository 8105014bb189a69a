--- AI_TENSORSET: write a tensor that is given as bytes or as decimal numbers, and start the runs of triggers ON SET.
-- KEYS[1] key            the tensor; what is there must be a tensor too, and goes with its TTL
-- ARGV[1] dtype          one of the names of the dtype table
-- ARGV[2..] arguments    dim... [BLOB bytes | VALUES value...]; without data zeros or empty strings
-- Returns: OK
-- Errors: BADARG BADVALUE TOOBIG WRONGTYPE BUSY OOM NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

-- Shape, and the index in argv of what follows it.
local function tensorset_shape(argv)
  local shape, i = {}, 2
  while argv[i] do
    local word = args.keyword(argv[i])
    if word == 'BLOB' or word == 'VALUES' then
      break
    end
    local dim = args.int(argv[i])
    if not dim then
      raise('BADARG', "dim '" .. args.printable(argv[i])
        .. "' is not a number from 0 to 2^53-1; behind the dims come BLOB or VALUES")
    elseif #shape == npy.MAX_RANK then
      raise('BADARG', 'more than ' .. npy.MAX_RANK .. ' dims')
    end
    shape[#shape + 1] = dim
    i = i + 1
  end
  return shape, i
end

local function tensorset_too_big(what, limit)
  raise('TOOBIG', ('%s, AI_TENSORSET takes %d at most: SET the key to a .npy file instead'):format(what, limit))
end

local function tensorset_values(dtype, argv, i, count)
  local given = #argv - i
  if math.max(count, given) > limits.VALUES then
    tensorset_too_big(('%.0f VALUES'):format(math.max(count, given)), limits.VALUES)
  elseif given ~= count then
    raise('BADARG', ('%d VALUES given, the shape has %.0f elements'):format(given, count))
  elseif dtype.kind == 'string' then
    return strings.encode(argv, i + 1, count, limits.BYTES)
  end
  return numbers.encode(dtype, argv, i + 1, count)
end

local function tensorset_blob(dtype, argv, i, count)
  local blob = argv[i + 1]
  if not blob or argv[i + 2] then
    raise('BADARG', 'one argument with the bytes must follow BLOB, and nothing after it')
  elseif #blob > limits.BYTES then
    tensorset_too_big(('a BLOB of %d bytes'):format(#blob), limits.BYTES)
  elseif dtype.kind == 'string' then
    if count > limits.STRINGS then
      tensorset_too_big(('%.0f strings in a BLOB'):format(count), limits.STRINGS)
    end
    return strings.encode(strings.split(blob, count), 1, count, limits.BYTES)
  elseif #blob ~= count * dtype.itemsize then
    raise('BADARG', ('a BLOB of %d bytes, %s of this shape has %.0f'):format(#blob, dtype.name, count * dtype.itemsize))
  elseif dtype.kind == 'bool' and blob:find('[^%z\1]') then
    raise('BADVALUE', ('byte %d of the BLOB is neither 0 nor 1'):format(blob:find('[^%z\1]')))
  end
  return blob
end

local function tensorset_zeros(dtype, count)
  local width = math.max(dtype.itemsize, 1)
  if count * width > limits.BYTES then
    tensorset_too_big(('a tensor of %.0f bytes'):format(count * width), limits.BYTES)
  end
  return ('\0'):rep(count * width), width
end

local function tensorset_replaceable(key)
  local start = redis.pcall('GETRANGE', key, 0, 5)
  if type(start) == 'table' then
    if start.err:find('WRONGTYPE', 1, true) then
      raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds another type: delete it or name another")
    end
    error(start, 0)
  end
  if not npy.is_tensor(start) and (start ~= '' or redis.call('EXISTS', key) == 1) then
    raise('WRONGTYPE', "key '" .. args.printable(key)
      .. "' holds a string that is not a tensor: delete it or name another")
  end
end

local function AI_TENSORSET(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TENSORSET': give the tensor's key as the one key")
  end
  local name = ARGV[1] or ''
  local dtype = dtypes.by_name[args.keyword(name)]
  if not dtype then
    raise('BADARG', "no dtype '" .. args.printable(name) .. "': it is one of " .. dtypes.names)
  end
  local shape, i = tensorset_shape(ARGV)
  local count = npy.count(shape, math.max(dtype.itemsize, 1))
  if not count then
    raise('BADARG', 'the product of the dims is too large')
  end
  tensorset_replaceable(key)
  local word = args.keyword(ARGV[i] or '')
  local data, width
  if word == 'BLOB' then
    data, width = tensorset_blob(dtype, ARGV, i, count)
  elseif word == 'VALUES' then
    data, width = tensorset_values(dtype, ARGV, i, count)
  else
    data, width = tensorset_zeros(dtype, count)
  end
  local descr = dtype.kind == 'string' and dtype.descr .. width or dtype.descr
  local own = node.keys()
  local list = onset.all(own)
  redis.call('SET', key, npy.header(descr, shape) .. data)
  if list then
    onset.changed(own, list, key, {}, true)
  end
  return redis.status_reply('OK')
end
