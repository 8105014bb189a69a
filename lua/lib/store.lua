--- @requires guard args keys node catalog jobs models kinds
-- Adding a version to a model key: what AI_MODELSTORE and AI_SCRIPTSTORE have in common.

local store = {}

local STORE_INLINE = 8388608
local STORE_CHUNK = 4194304

function store.check_device(device)
  if not string.find(device, '^[A-Z0-9:_.-]+$') or #device > 32 then
    raise('BADARG', 'Invalid DEVICE: CPU, GPU, GPU:1 or a queue name of at most 32 letters, digits and :_.-')
  end
end

-- Chunks of an upload that nobody needs, since the version is there. Those without a TTL belong to a version that loads:
-- to this very one, where a call is only repeated.
local function store_drop(key, version, spec)
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

local function store_keep(key, spec, upload)
  if spec.blob then
    local chunks = math.ceil(#spec.blob / STORE_CHUNK)
    for i = 0, chunks - 1 do
      redis.call('SET', keys.upload(key, upload, i), string.sub(spec.blob, i * STORE_CHUNK + 1, (i + 1) * STORE_CHUNK))
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

-- Add the version that `spec` describes, or find the one that is equal to it; returns its number. spec: backend, device, tag,
-- batchsize, minbatchsize, minbatchtimeout, inputs, outputs, options (JSON), and blob, or upload, chunks, size, digest.
function store.add(key, spec)
  if key == '' or #key > 512 or string.find(key, '@', 1, true) then
    raise('BADARG', 'a model name has 1 to 512 bytes and no @ (that marks a version or an alias)')
  end
  if spec.blob and #spec.blob > STORE_INLINE then
    raise('TOOBIG', 'a BLOB of ' .. #spec.blob .. ' bytes: above ' .. STORE_INLINE
      .. ' SET it in chunks of ' .. STORE_CHUNK .. ' bytes and name them with UPLOAD (keyside model put does)')
  end
  local uid = models.uid(key)
  if uid then
    kinds.check_store(key, spec.backend)
  end
  local last = uid and tonumber(redis.call('HGET', key, 'last')) or 0
  local sha1 = spec.blob and redis.sha1hex(spec.blob) or ''
  local settings = {
    spec.backend, spec.device, spec.tag, tostring(spec.batchsize), tostring(spec.minbatchsize), tostring(spec.minbatchtimeout),
    #spec.inputs > 0 and cjson.encode(spec.inputs) or '[]', #spec.outputs > 0 and cjson.encode(spec.outputs) or '[]', spec.options,
  }
  local content = spec.blob and sha1 or spec.digest
  local version = uid and models.same(key, content, settings)
  if version and spec.upload then
    store_drop(key, version, spec)
  elseif not version then
    if last >= catalog.MAX_VERSIONS then
      raise('TOOBIG', "model '" .. args.printable(key) .. "' has " .. last .. ' versions, the most there can be: store it under another name')
    end
    local own = node.keys()
    local upload = spec.upload or node.unique()
    local chunks, size = store_keep(key, spec, upload)
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
  return version
end

-- What the public function replies.
function store.reply(spec, version)
  if spec.reply then
    return version
  end
  return redis.status_reply('OK')
end
