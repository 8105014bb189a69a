--- AI_MODELGET: settings and blob of a model's version.
-- KEYS[1] key            the model
-- ARGV[1..] options      [VERSION n] [META] [BLOB | CHUNKS]; neither META nor BLOB nor CHUNKS: META BLOB
-- Returns: META: the flat list of docs/protocol.md; BLOB alone: the bytes; CHUNKS: the keys that hold them, in order
-- Errors: BADARG NOMODEL WRONGTYPE TOOBIG UPLOADLOST
-- Flags: no-writes allow-cross-slot-keys

local function modelget_blob(key, uid, version)
  local size = tonumber(redis.call('HGET', key, version .. ':size'))
  if size > 8388608 then
    raise('TOOBIG', 'the blob has ' .. size .. ' bytes: ask for CHUNKS and GET each of those keys')
  end
  local parts = {}
  for i, name in ipairs(models.chunks(key, uid, version)) do
    parts[i] = redis.call('GET', name) or raise('UPLOADLOST', ("chunk %d of the blob of '%s@%s' has gone, deleted, evicted or expired: store the model again")
      :format(i - 1, args.printable(key), version))
  end
  return table.concat(parts)
end

local function AI_MODELGET(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_MODELGET': give the model's name as the one key")
  end
  local meta, blob, chunks, asked = false, false, false, nil
  local i = 1
  while ARGV[i] do
    local word = string.upper(ARGV[i])
    if word == 'META' then
      meta = true
    elseif word == 'BLOB' then
      blob = true
    elseif word == 'CHUNKS' then
      chunks = true
    elseif word == 'VERSION' then
      i = i + 1
      asked = ARGV[i] or raise('BADARG', 'VERSION needs a number')
    else
      raise('BADARG', "unsupported subcommand '" .. args.printable(ARGV[i]) .. "': META, BLOB, CHUNKS or VERSION n")
    end
    i = i + 1
  end
  local uid = kinds.uid(key, false, 'AI_SCRIPTGET')
  local version = models.version(key, asked)
  if chunks then
    return models.chunks(key, uid, version)
  end
  if blob and not meta then
    return modelget_blob(key, uid, version)
  end
  local got = models.get(key, version, 'backend', 'device', 'tag', 'batchsize', 'minbatchsize', 'inputs', 'outputs', 'minbatchtimeout')
  local reply = {
    'backend', got[1], 'device', got[2], 'tag', got[3], 'batchsize', tonumber(got[4]), 'minbatchsize', tonumber(got[5]),
    'inputs', cjson.decode(got[6]), 'outputs', cjson.decode(got[7]), 'minbatchtimeout', tonumber(got[8]),
  }
  if blob or not meta then
    reply[17] = 'blob'
    reply[18] = modelget_blob(key, uid, version)
  end
  return reply
end
