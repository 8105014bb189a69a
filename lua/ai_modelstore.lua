--- AI_MODELSTORE: add a version to a model; an executor of its device then loads it.
-- KEYS[1] key            the model
-- ARGV[1] backend        ONNX, TORCH, or what an executor's plug-in adds
-- ARGV[2] device         name of the device queue
-- ARGV[3..] options      [TAG t] [BATCHSIZE n [MINBATCHSIZE m [MINBATCHTIMEOUT ms]]] [INPUTS n name... OUTPUTS n name...]
--                        [OPTIONS json] [REPLY VERSION] (BLOB bytes... | UPLOAD id chunks size DIGEST sha256)
-- Returns: OK, or with REPLY VERSION the version number
-- Errors: BADARG TOOBIG WRONGTYPE UPLOADLOST TRYAGAIN
-- Flags: allow-cross-slot-keys

local MODELSTORE_INLINE = 8388608
local MODELSTORE_CHUNK = 4194304

local function modelstore_names(argv, i, word)
  local count = args.int(argv[i] or '', 1, 1000)
  if not count then
    raise('BADARG', word .. ' needs a positive number of names, then the names')
  end
  local names = {}
  for n = 1, count do
    names[n] = argv[i + n]
  end
  if #names < count then
    raise('BADARG', word .. ' ' .. count .. ': only ' .. #names .. ' names follow')
  end
  return names, i + count + 1
end

local function modelstore_number(argv, i, word, least)
  local number = args.int(argv[i] or '', least, 1000000)
  if not number then
    raise('BADARG', 'Invalid argument for ' .. word .. ": a whole number of at least " .. least .. " is needed")
  end
  return number, i + 1
end

local function modelstore_parse(argv)
  local spec = { tag = '', batchsize = 0, minbatchsize = 0, minbatchtimeout = 0, inputs = {}, outputs = {}, options = '{}' }
  spec.backend = string.upper(argv[1] or '')
  spec.device = string.upper(argv[2] or '')
  if not string.find(spec.backend, '^[A-Z][A-Z0-9_]*$') then
    raise('BADARG', 'unsupported backend: give ONNX or TORCH')
  end
  if spec.backend == 'TF' or spec.backend == 'TFLITE' then
    raise('BADARG', 'unsupported backend ' .. spec.backend .. ': convert the model to ONNX (tf2onnx) and store it as ONNX')
  end
  if not string.find(spec.device, '^[A-Z0-9:_.-]+$') or #spec.device > 32 then
    raise('BADARG', 'Invalid DEVICE: CPU, GPU, GPU:1 or a queue name of at most 32 letters, digits and :_.-')
  end
  local i = 3
  while argv[i] do
    local word = string.upper(argv[i])
    if word == 'TAG' then
      spec.tag, i = argv[i + 1] or raise('BADARG', 'TAG needs a value'), i + 2
    elseif word == 'BATCHSIZE' then
      spec.batchsize, i = modelstore_number(argv, i + 1, word, 0)
    elseif word == 'MINBATCHSIZE' then
      spec.minbatchsize, i = modelstore_number(argv, i + 1, word, 0)
    elseif word == 'MINBATCHTIMEOUT' then
      spec.minbatchtimeout, i = modelstore_number(argv, i + 1, word, 0)
    elseif word == 'INPUTS' then
      spec.inputs, i = modelstore_names(argv, i + 1, word)
    elseif word == 'OUTPUTS' then
      spec.outputs, i = modelstore_names(argv, i + 1, word)
    elseif word == 'OPTIONS' then
      local ok, options = pcall(cjson.decode, argv[i + 1] or '')
      if not ok or type(options) ~= 'table' or not string.find(argv[i + 1], '^%s*{') then
        raise('BADARG', 'OPTIONS needs a JSON object')
      end
      spec.options, i = argv[i + 1], i + 2
    elseif word == 'REPLY' and string.upper(argv[i + 1] or '') == 'VERSION' then
      spec.reply, i = true, i + 2
    elseif word == 'BLOB' then
      spec.blob = table.concat(argv, '', i + 1)
      break
    elseif word == 'UPLOAD' then
      spec.upload = argv[i + 1] or ''
      spec.chunks = args.int(argv[i + 2] or '', 1, models.MAX_CHUNKS)
      spec.size = args.int(argv[i + 3] or '', 1, 4398046511104)
      spec.digest = string.lower(argv[i + 5] or '')
      if not string.find(spec.upload, '^[%w_-]+$') or #spec.upload > 64 or not spec.chunks or not spec.size
        or string.upper(argv[i + 4] or '') ~= 'DIGEST' or not string.find(spec.digest, '^%x+$') or #spec.digest ~= 64 or argv[i + 6] then
        raise('BADARG', 'UPLOAD takes: id chunks size DIGEST sha256, at the end')
      end
      break
    else
      raise('BADARG', "Invalid argument, expected BLOB: got '" .. args.printable(argv[i]) .. "'")
    end
  end
  return spec
end

local function modelstore_check(spec)
  if spec.minbatchsize > 0 and spec.batchsize == 0 then
    raise('BADARG', 'MINBATCHSIZE specified without BATCHSIZE')
  end
  if spec.minbatchtimeout > 0 and spec.minbatchsize == 0 then
    raise('BADARG', 'MINBATCHTIMEOUT specified without MINBATCHSIZE')
  end
  if spec.minbatchsize > spec.batchsize then
    raise('BADARG', 'MINBATCHSIZE ' .. spec.minbatchsize .. ' is larger than BATCHSIZE ' .. spec.batchsize)
  end
  if not spec.blob and not spec.upload then
    raise('BADARG', 'Insufficient arguments, missing model BLOB')
  end
  if spec.blob == '' then
    raise('BADARG', 'the model BLOB is empty')
  end
  if spec.blob and #spec.blob > MODELSTORE_INLINE then
    raise('TOOBIG', 'a BLOB of ' .. #spec.blob .. ' bytes: above ' .. MODELSTORE_INLINE
      .. ' SET it in chunks of ' .. MODELSTORE_CHUNK .. ' bytes and name them with UPLOAD (keyside model put does)')
  end
end

-- Chunks of an upload that nobody needs, since the version is there. Those without a TTL belong to a version that loads:
-- to this very one, where a call is only repeated.
local function modelstore_drop(key, version, spec)
  if models.get(key, version, 'upload')[1] == spec.upload then
    return
  end
  for i = 0, spec.chunks - 1 do
    local name = keys.upload(key, spec.upload, i)
    local ttl = redis.call('PTTL', name)
    if ttl == -2 then
      return
    elseif ttl ~= -1 then
      redis.call('UNLINK', name)
    end
  end
end

local function modelstore_keep(key, spec, upload)
  if spec.blob then
    local chunks = math.ceil(#spec.blob / MODELSTORE_CHUNK)
    for i = 0, chunks - 1 do
      redis.call('SET', keys.upload(key, upload, i), string.sub(spec.blob, i * MODELSTORE_CHUNK + 1, (i + 1) * MODELSTORE_CHUNK))
    end
    return chunks, #spec.blob
  end
  local size = 0
  for i = 0, spec.chunks - 1 do
    local chunk = redis.call('STRLEN', keys.upload(key, upload, i))
    if chunk == 0 then
      raise('UPLOADLOST', ('chunk %d of upload %s is not here: upload the model again'):format(i, upload))
    end
    size = size + chunk
  end
  if size ~= spec.size then
    raise('UPLOADLOST', 'upload ' .. upload .. ' has ' .. size .. ' bytes here, ' .. spec.size .. ' were announced: upload the model again')
  end
  for i = 0, spec.chunks - 1 do
    redis.call('PERSIST', keys.upload(key, upload, i))
  end
  return spec.chunks, size
end

local function AI_MODELSTORE(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_MODELSTORE': give the model's name as the one key")
  end
  if key == '' or #key > 512 or string.find(key, '@', 1, true) then
    raise('BADARG', 'a model name has 1 to 512 bytes and no @ (that marks a version or an alias)')
  end
  local spec = modelstore_parse(ARGV)
  modelstore_check(spec)
  local uid = models.uid(key)
  local last = uid and tonumber(redis.call('HGET', key, 'last')) or 0
  local sha1 = spec.blob and redis.sha1hex(spec.blob) or ''
  local settings = {
    spec.backend, spec.device, spec.tag, tostring(spec.batchsize), tostring(spec.minbatchsize), tostring(spec.minbatchtimeout),
    #spec.inputs > 0 and cjson.encode(spec.inputs) or '[]', #spec.outputs > 0 and cjson.encode(spec.outputs) or '[]', spec.options,
  }
  local content = spec.blob and sha1 or spec.digest
  local version = uid and models.same(key, content, settings)
  if version and spec.upload then
    modelstore_drop(key, version, spec)
  elseif not version then
    if last >= catalog.MAX_VERSIONS then
      raise('TOOBIG', "model '" .. args.printable(key) .. "' has " .. last .. ' versions, the most there can be: store it under another name')
    end
    local own = node.keys()
    local upload = spec.upload or node.unique()
    local chunks, size = modelstore_keep(key, spec, upload)
    version = last + 1
    if not uid then
      -- A model that went by a plain DEL has left its records.
      catalog.forget(own, key)
      uid = node.unique()
      redis.call('HSET', key, 'type', 'model', 'uid', uid)
    end
    redis.call('HSET', key, 'last', version)
    local v = version .. ':'
    redis.call('HSET', key, v .. 'state', 'loading', v .. 'backend', settings[1], v .. 'device', settings[2], v .. 'tag', settings[3],
      v .. 'batchsize', settings[4], v .. 'minbatchsize', settings[5], v .. 'minbatchtimeout', settings[6],
      v .. 'inputs', settings[7], v .. 'outputs', settings[8], v .. 'options', settings[9],
      v .. 'size', size, v .. 'chunks', chunks, v .. 'upload', upload, v .. 'created', string.format('%.0f', node.now_ms()))
    if spec.blob then
      redis.call('HSET', key, v .. 'sha1', sha1)
    else
      redis.call('HSET', key, v .. 'expected', spec.digest)
    end
    redis.call('HSET', key, models.same_field(content, settings), version)
    catalog.update(own, key, version)
    redis.call('HSET', key, v .. 'load', jobs.add_load(own, key, uid, version, spec.device))
  end
  if spec.reply then
    return version
  end
  return redis.status_reply('OK')
end
