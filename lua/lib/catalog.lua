--- @requires guard args keys node
-- What the functions of this node know about models. The model key (docs/protocol.md section 3) is the source; the
-- catalog holds one JSON record per target, ready to be read at submit, also on nodes where the model key is not.

local catalog = {}

local parsed, parsed_count = {}, 0

-- A record as a Lua table. Records are few and change rarely: the text found before is not decoded again.
local function decode(raw)
  local record = parsed[raw]
  if record then
    return record
  end
  if parsed_count >= 1024 then
    parsed, parsed_count = {}, 0
  end
  record = cjson.decode(raw)
  record.id = record.uid .. '-' .. record.version
  record.head = '\156' .. cmsgpack.pack(1, 'run', record.id, record.key, record.version) -- of an array of 12
  record.title = args.printable(record.key, 512) .. '@' .. record.version
  local signature = record.signature
  if signature == cjson.null then
    record.signature = nil
  else
    if signature.outputs == cjson.null then
      signature.outputs = nil
    end
    signature.position = {}
    for i, spec in ipairs(signature.inputs) do
      signature.position[spec.name] = i
      spec.fits = setmetatable({}, { __mode = 'k' })
      if spec.shape == cjson.null then
        spec.shape = nil
      end
    end
  end
  parsed[raw] = record
  parsed_count = parsed_count + 1
  return record
end

local function is_specs(specs)
  if type(specs) ~= 'table' then
    return false
  end
  for _, spec in ipairs(specs) do
    if type(spec) ~= 'table' or type(spec.name) ~= 'string' or type(spec.dtype) ~= 'string' or type(spec.shape) == 'nil' then
      return false
    end
    for _, dim in ipairs(type(spec.shape) == 'table' and spec.shape or {}) do
      if type(dim) ~= 'number' then
        return false
      end
    end
  end
  return true
end

-- Whether text is a signature as decode() takes it.
function catalog.is_signature(text)
  local ok, signature = pcall(cjson.decode, text)
  return ok and type(signature) == 'table' and is_specs(signature.inputs)
    and (signature.outputs == cjson.null or is_specs(signature.outputs))
end

function catalog.find(own, target)
  local raw = redis.call('HGET', own.catalog, target)
  if raw then
    return decode(raw)
  end
  local name = string.match(target, '^(.-)@')
  if not name then
    raise('NOMODEL', "no model '" .. args.printable(target) .. "': store it with AI_MODELSTORE, or list them with AI_MODELSCAN")
  end
  if redis.call('HEXISTS', own.catalog, name) == 0 then
    raise('NOMODEL', "no model '" .. args.printable(name) .. "': store it with AI_MODELSTORE, or list them with AI_MODELSCAN")
  end
  raise('NOMODEL', "model '" .. args.printable(name) .. "' has no version or alias '" .. args.printable(string.sub(target, #name + 2)) .. "'")
end

local function read(key, version, fields)
  local names = {}
  for i, field in ipairs(fields) do
    names[i] = version .. ':' .. field
  end
  return redis.call('HMGET', key, unpack(names))
end

-- The record of one version as JSON. The signature is JSON already, made by the executor: Lua cannot tell [] from {}.
-- The record of a bare name has `last` too, the highest version that may have a record of its own.
local function encode(key, version, last)
  local got = read(key, version, { 'state', 'device', 'signature', 'reason' })
  if not got[1] then
    return nil
  end
  return '{"key":' .. cjson.encode(key)
    .. ',"uid":' .. cjson.encode(redis.call('HGET', key, 'uid'))
    .. ',"version":' .. version
    .. ',"state":' .. cjson.encode(got[1])
    .. ',"device":' .. cjson.encode(got[2])
    .. ',"signature":' .. (got[3] or 'null')
    .. ',"reason":' .. cjson.encode(got[4] or '')
    .. (last and ',"last":' .. last or '') .. '}'
end

-- What the bare name means: the default, else the newest version that has not failed, else the newest.
function catalog.bare(key)
  local default = redis.call('HGET', key, 'default')
  if default then
    return default
  end
  local last = tonumber(redis.call('HGET', key, 'last'))
  local newest
  for version = last, 1, -1 do
    local state = redis.call('HGET', key, version .. ':state')
    if state and state ~= 'failed' then
      return tostring(version)
    end
    newest = newest or (state and tostring(version))
  end
  return newest
end

-- Bring the catalog in line with the model key after `version` changed or went.
function catalog.update(own, key, version)
  local record = encode(key, version)
  if record then
    redis.call('HSET', own.catalog, key .. '@' .. version, record)
  else
    redis.call('HDEL', own.catalog, key .. '@' .. version)
  end
  local current = catalog.bare(key)
  redis.call('HSET', own.catalog, key, encode(key, current, redis.call('HGET', key, 'last')))
  redis.call('HSET', own.models, key, redis.call('HGET', key, current .. ':tag') or '')
end

function catalog.drop(own, key, last)
  for version = 1, last do
    redis.call('HDEL', own.catalog, key .. '@' .. version)
  end
  redis.call('HDEL', own.catalog, key)
  redis.call('HDEL', own.models, key)
end

-- Whether `model`, an id uid-version, is what the catalog knows as that version of key.
function catalog.has(own, key, version, model)
  local raw = redis.call('HGET', own.catalog, key .. '@' .. version)
  return raw and decode(raw).id == model
end

-- Clear what a model left behind that went without AI_MODELDEL.
function catalog.forget(own, key)
  local raw = redis.call('HGET', own.catalog, key)
  if not raw then
    return
  end
  local record = decode(raw)
  local last = tonumber(record.last or record.version)
  for version = 1, last do
    redis.call('UNLINK', own.stats .. record.uid .. '-' .. version)
  end
  catalog.drop(own, key, last)
end
