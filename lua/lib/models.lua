--- @requires guard keys node catalog args jobs
-- The model key: docs/protocol.md section 3.

local models = {}

local GONE_MS = 600000 -- how long what a queued job may still need outlives its model
models.GONE_MS = GONE_MS

-- The uid of the model at key; nil where there is none. Any other value there is refused.
function models.uid(key)
  local found = redis.pcall('HMGET', key, 'type', 'uid', 'last')
  if found.err then
    if string.find(found.err, 'WRONGTYPE', 1, true) then
      raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds something else than a model")
    end
    error(found, 0)
  end
  if found[1] == 'model' and found[2] and args.int(found[3] or '', 1, catalog.MAX_VERSIONS) then
    return found[2]
  end
  if redis.call('EXISTS', key) == 1 then
    raise('WRONGTYPE', "key '" .. args.printable(key) .. "' is a hash of yours, not a model")
  end
  return nil
end

function models.existing_uid(key)
  local uid = models.uid(key)
  if not uid then
    raise('NOMODEL', "no model '" .. args.printable(key) .. "': store it with AI_MODELSTORE, or list them with AI_MODELSCAN")
  end
  return uid
end

-- The version asked for, or the one that the bare name means.
function models.version(key, asked)
  local version = asked or catalog.bare(key)
  if not version or not redis.call('HGET', key, version .. ':state') then
    raise('NOMODEL', "model '" .. args.printable(key) .. "' has no version '" .. args.printable(version or '') .. "'")
  end
  return version
end

function models.get(key, version, ...)
  local names = { ... }
  for i = 1, #names do
    names[i] = version .. ':' .. names[i]
  end
  return redis.call('HMGET', key, unpack(names))
end

models.MAX_CHUNKS = 1000000

-- A number of chunks as the model key has it; 0 if somebody has spoilt it.
function models.count(chunks)
  return args.int(chunks or '', 1, models.MAX_CHUNKS) or 0
end

-- The keys that hold the blob of a version, in order.
function models.chunks(key, uid, version)
  local got = models.get(key, version, 'chunks', 'upload', 'digest')
  local names = {}
  for i = 0, models.count(got[1]) - 1 do
    if got[3] then
      names[i + 1] = keys.blob(key, uid, got[3], i)
    else
      names[i + 1] = keys.upload(key, got[2], i)
    end
  end
  return names
end

local function shared(key, version, digest)
  if not digest then
    return false
  end
  for n = 1, tonumber(redis.call('HGET', key, 'last')) do
    if tostring(n) ~= version and redis.call('HGET', key, n .. ':digest') == digest then
      return true
    end
  end
  return false
end

-- The settings that make versions of one content differ, in the order that models.same_field takes.
local SETTINGS = {
  'backend', 'device', 'tag', 'batchsize', 'minbatchsize', 'minbatchtimeout', 'inputs', 'outputs', 'options',
}

-- The field of the model key that holds the version with this content (a hash of the blob) and these settings.
function models.same_field(content, settings)
  return 'same:' .. redis.sha1hex(cmsgpack.pack(settings) .. content)
end

-- The version that has this content and these settings already, unless it failed.
function models.same(key, content, settings)
  local version = redis.call('HGET', key, models.same_field(content, settings))
  local state = version and redis.call('HGET', key, version .. ':state')
  if state and state ~= 'failed' then
    return tonumber(version)
  end
end

-- The fields by which models.same may find a version.
local function same_fields(key, version)
  local settings = models.get(key, version, unpack(SETTINGS))
  local found = {}
  for _, content in ipairs(models.get(key, version, 'sha1', 'expected', 'digest')) do
    if content then
      found[#found + 1] = models.same_field(content, settings)
    end
  end
  return found
end

-- A published version is found by its digest too, however its blob came.
function models.index(key, version)
  for _, field in ipairs(same_fields(key, version)) do
    redis.call('HSETNX', key, field, version)
  end
end

local function unindex(key, version)
  for _, field in ipairs(same_fields(key, version)) do
    if redis.call('HGET', key, field) == tostring(version) then
      redis.call('HDEL', key, field)
    end
  end
end

local FIELDS = {
  'state', 'reason', 'backend', 'device', 'tag', 'batchsize', 'minbatchsize', 'minbatchtimeout', 'inputs', 'outputs',
  'options', 'size', 'chunks', 'upload', 'expected', 'digest', 'sha1', 'signature', 'created', 'ready', 'load',
}

-- Take one version away; jobs that were queued for it find it for a while in the `gone` hash. With `all` every version
-- goes, and then the key: no other keeps the blob, and what the key says of the version need not be cleared.
function models.remove(own, key, uid, version, all)
  local before = models.get(key, version, 'state', 'device', 'load')
  if before[1] == 'loading' and before[3] then
    jobs.remove(own.jobs .. before[2], before[3])
  end
  if all or not shared(key, version, redis.call('HGET', key, version .. ':digest')) then
    for _, name in ipairs(models.chunks(key, uid, version)) do
      redis.call('PEXPIRE', name, GONE_MS)
    end
  end
  local gone = keys.gone(key, uid)
  local left, names = { 'type', 'gone', 'uid', uid }, {}
  for i, value in ipairs(models.get(key, version, unpack(FIELDS))) do
    names[i] = version .. ':' .. FIELDS[i]
    if value then
      left[#left + 1] = names[i]
      left[#left + 1] = value
    end
  end
  redis.call('HSET', gone, unpack(left))
  if not all then
    unindex(key, version)
    redis.call('HDEL', key, unpack(names))
  end
  redis.call('PEXPIRE', gone, GONE_MS)
  redis.call('UNLINK', own.stats .. uid .. '-' .. version)
end

-- The newest ready version becomes what the bare name means.
function models.choose_default(key)
  for version = tonumber(redis.call('HGET', key, 'last')), 1, -1 do
    if redis.call('HGET', key, version .. ':state') == 'ready' then
      redis.call('HSET', key, 'default', version)
      return
    end
  end
  redis.call('HDEL', key, 'default')
end

-- A version could not be loaded: what served before goes on serving.
function models.failed(own, key, version, reason)
  redis.call('HSET', key, version .. ':state', 'failed', version .. ':reason', reason)
  unindex(key, version)
  for _, name in ipairs(models.chunks(key, redis.call('HGET', key, 'uid'), version)) do
    redis.call('PEXPIRE', name, GONE_MS)
  end
  catalog.update(own, key, version)
end
