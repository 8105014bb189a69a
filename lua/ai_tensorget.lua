--- AI_TENSORGET: read a tensor as bytes or as numbers.
-- KEYS[1] key            the tensor
-- ARGV[1..] options      [META] [BLOB | VALUES]; none: META BLOB
-- Returns: BLOB: the bytes; VALUES: an array; with META: dtype, name, shape, [dims], and blob or values with the data
-- Errors: BADARG BADNPY BADVALUE NOTENSOR TOOBIG WRONGTYPE
-- Flags: no-writes

local function tensorget_options(argv)
  local meta, form
  for i = 1, #argv do
    local word = args.keyword(argv[i])
    if word == 'META' and not meta then
      meta = true
    elseif (word == 'BLOB' or word == 'VALUES') and not form then
      form = word
    else
      raise('BADARG', "unexpected '" .. args.printable(argv[i]) .. "': [META] [BLOB | VALUES] may follow the key")
    end
  end
  if not meta and not form then
    return true, 'BLOB'
  end
  return meta, form
end

local function tensorget_data(key, header, form)
  local limit = form == 'VALUES' and limits.VALUES or (header.kind == 'string' and limits.STRINGS or limits.BYTES)
  if header.nbytes > limits.BYTES or header.count > limit then
    raise('TOOBIG', ('%.0f elements, %.0f bytes: as %s at most %d elements and %d bytes; GET the key instead')
      :format(header.count, header.nbytes, form, limit, limits.BYTES))
  end
  local data = redis.call('GETRANGE', key, header.offset, -1)
  if header.kind == 'string' then
    local texts = strings.decode(data, header.itemsize)
    return form == 'VALUES' and texts or strings.join(texts)
  elseif form == 'VALUES' then
    return numbers.decode(dtypes.by_name[header.dtype], data)
  end
  return data
end

local function AI_TENSORGET(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TENSORGET': give the tensor's key as the one key")
  end
  local meta, form = tensorget_options(ARGV)
  local header = npy.inspect(key)
  local data = form and tensorget_data(key, header, form)
  if not meta then
    return data
  end
  local reply = { 'dtype', header.dtype, 'shape', header.shape }
  if form then
    reply[5], reply[6] = form:lower(), data
  end
  return reply
end
