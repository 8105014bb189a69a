--- @requires args dtypes guard limits npy numbers strings
-- A small tensor from the words of a call: dtype dim... [BLOB bytes | VALUES value...], as AI_TENSORSET takes them.

local tensorset = {}

-- Shape, and the index in argv of what follows it.
function tensorset.read_shape(argv, i)
  local shape = {}
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

function tensorset.too_big(what, limit)
  raise('TOOBIG', ('%s, AI_TENSORSET takes %d at most: SET the key to a .npy file instead'):format(what, limit))
end

function tensorset.values_of(dtype, argv, i, count)
  local given = #argv - i
  if math.max(count, given) > limits.VALUES then
    tensorset.too_big(('%.0f VALUES'):format(math.max(count, given)), limits.VALUES)
  elseif given ~= count then
    raise('BADARG', ('%d VALUES given, the shape has %.0f elements'):format(given, count))
  elseif dtype.kind == 'string' then
    return strings.encode(argv, i + 1, count, limits.BYTES)
  end
  return numbers.encode(dtype, argv, i + 1, count)
end

function tensorset.blob_of(dtype, argv, i, count)
  local blob = argv[i + 1]
  if not blob or argv[i + 2] then
    raise('BADARG', 'one argument with the bytes must follow BLOB, and nothing after it')
  elseif #blob > limits.BYTES then
    tensorset.too_big(('a BLOB of %d bytes'):format(#blob), limits.BYTES)
  elseif dtype.kind == 'string' then
    if count > limits.STRINGS then
      tensorset.too_big(('%.0f strings in a BLOB'):format(count), limits.STRINGS)
    end
    return strings.encode(strings.split(blob, count), 1, count, limits.BYTES)
  elseif #blob ~= count * dtype.itemsize then
    raise('BADARG', ('a BLOB of %d bytes, %s of this shape has %.0f'):format(#blob, dtype.name, count * dtype.itemsize))
  elseif dtype.kind == 'bool' and blob:find('[^%z\1]') then
    raise('BADVALUE', ('byte %d of the BLOB is neither 0 nor 1'):format(blob:find('[^%z\1]')))
  end
  return blob
end

function tensorset.zeros_of(dtype, count)
  local width = math.max(dtype.itemsize, 1)
  if count * width > limits.BYTES then
    tensorset.too_big(('a tensor of %.0f bytes'):format(count * width), limits.BYTES)
  end
  return ('\0'):rep(count * width), width
end

--- Reads these words from position i to the end of argv -> header and data, together a .npy file.
function tensorset.read(argv, i)
  local name = argv[i] or ''
  local dtype = dtypes.by_name[args.keyword(name)]
  if not dtype then
    raise('BADARG', "no dtype '" .. args.printable(name) .. "': it is one of " .. dtypes.names)
  end
  local shape
  shape, i = tensorset.read_shape(argv, i + 1)
  local count = npy.count(shape, math.max(dtype.itemsize, 1))
  if not count then
    raise('BADARG', 'the product of the dims is too large')
  end
  local word = args.keyword(argv[i] or '')
  local data, width
  if word == 'BLOB' then
    data, width = tensorset.blob_of(dtype, argv, i, count)
  elseif word == 'VALUES' then
    data, width = tensorset.values_of(dtype, argv, i, count)
  else
    data, width = tensorset.zeros_of(dtype, count)
  end
  return npy.header(dtype.kind == 'string' and dtype.descr .. width or dtype.descr, shape), data
end
