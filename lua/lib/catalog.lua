--- @requires guard args keys node bounds triggers
-- What the functions of this node know about models and triggers. The model key (docs/protocol.md section 3) is the source; the
-- catalog holds one JSON record per target, ready to be read at submit, also on nodes where the model key is not: they
-- have copies, which executors keep equal to it (KS_CATALOG, KS_MERGE).

local catalog = {}

catalog.COMPLETE = '@' -- field of the catalog that says that all models of the cluster are in it; no target is called so
catalog.CHANNEL = 'ks:catalog'
local MOST_TEXTS = 1000 -- targets of a graph, functions of a script
local TOMBSTONE_MS = 86400000 -- how long a node can tell others that a model has gone

local parsed, parsed_count = {}, 0

-- Above it a record is damaged: functions look at each version of a model, and nobody is served meanwhile.
catalog.MAX_VERSIONS = 100000

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

local function is_signature(signature)
  return type(signature) == 'table' and is_specs(signature.inputs) and (signature.outputs == cjson.null or is_specs(signature.outputs))
end

local function is_version(number)
  return type(number) == 'number' and number >= 1 and number <= catalog.MAX_VERSIONS and number % 1 == 0
end

-- Another client may have written anything there.
local function is_record(record)
  return type(record) == 'table' and type(record.key) == 'string' and type(record.uid) == 'string' and type(record.state) == 'string'
    and type(record.device) == 'string' and args.is_device(record.device) and (record.reason == nil or type(record.reason) == 'string')
    and is_version(record.version) and (record.last == nil or is_version(record.last))
    and (record.signature == cjson.null or is_signature(record.signature)) and (record.limits == nil or bounds.check(record.limits))
    and (record.uses == nil or args.is_texts(record.uses, 0, MOST_TEXTS)) and (record.functions == nil or args.is_texts(record.functions, 0, MOST_TEXTS))
end

-- A record as a Lua table; nil if it is none. Records are few and change rarely: the text found before is not decoded again.
local function decode(raw)
  local record = parsed[raw]
  if record then
    return record
  end
  if parsed_count >= 1024 then
    parsed, parsed_count = {}, 0
  end
  local ok
  ok, record = pcall(cjson.decode, raw)
  if not ok or not is_record(record) then
    return nil
  end
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

-- Whether text is a signature as decode() takes it.
function catalog.is_signature(text)
  local ok, signature = pcall(cjson.decode, text)
  return ok and is_signature(signature)
end

function catalog.find(own, target)
  local raw = redis.call('HGET', own.catalog, target)
  local found = raw and decode(raw)
  if found then
    return found
  end
  if own.clustered and redis.call('HEXISTS', own.catalog, catalog.COMPLETE) == 0 then
    raise('TRYAGAIN', "'" .. args.printable(target) .. "' is not in the catalog of this node, which is not complete yet: an executor"
      .. ' of this node brings it up to date, if there is one. Send the call again')
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

-- What a version is, besides a model, as JSON that follows in its record: scripts know their functions, graphs what they run.
local KINDS = { SCRIPT = { 'script', 'functions', 'entry_points' }, FUNCTION = { 'script', 'functions', 'entry_points' }, GRAPH = { 'graph', 'uses', 'uses' } }

local function encode_kind(backend, options)
  local kind = KINDS[backend]
  if not kind then
    return ''
  end
  local ok, given = pcall(cjson.decode, options or '')
  local list = ok and type(given) == 'table' and given[kind[3]]
  if not args.is_texts(list, 1, MOST_TEXTS) then
    return ',"kind":"' .. kind[1] .. '"'
  end
  return ',"kind":"' .. kind[1] .. '","' .. kind[2] .. '":' .. cjson.encode(list)
end

-- The record of one version as JSON. The signature is JSON already, made by the executor: Lua cannot tell [] from {}.
-- The record of a bare name has `last` too, the highest version that may have a record of its own.
local function encode(key, version, last)
  local got = read(key, version, { 'state', 'device', 'signature', 'reason', 'backend', 'options' })
  if not got[1] then
    return nil
  end
  local limits = redis.call('HGET', key, 'limits')
  return '{"key":' .. cjson.encode(key)
    .. ',"uid":' .. cjson.encode(redis.call('HGET', key, 'uid'))
    .. ',"version":' .. version
    .. ',"state":' .. cjson.encode(got[1])
    .. ',"device":' .. cjson.encode(got[2])
    .. ',"signature":' .. (got[3] or 'null')
    .. ',"reason":' .. cjson.encode(got[4] or '')
    .. encode_kind(got[5], got[6])
    .. (limits and bounds.decode(limits) and ',"limits":' .. limits or '')
    .. (last and ',"last":' .. last or '') .. '}'
end

-- What the bare name means: the default, else the newest version that has not failed, else the newest.
function catalog.bare(key)
  local default = redis.call('HGET', key, 'default')
  if default and redis.call('HEXISTS', key, default .. ':state') == 1 then
    return default
  end
  local last = args.int(redis.call('HGET', key, 'last') or '', 1, catalog.MAX_VERSIONS) or 0
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

-- Give what the catalog says of a model its next revision, and let the other nodes know. Times, so that they grow even
-- where a failover has lost some; never the same twice on a node.
local function changed(own, key)
  local top = redis.call('ZREVRANGE', own.revs, '0', '0', 'WITHSCORES')
  local rev = ('%.0f'):format(math.max((tonumber(top[2]) or 0) + 1, node.now_ms()))
  redis.call('ZADD', own.revs, rev, key)
  redis.pcall('PUBLISH', catalog.CHANNEL, own.tag .. ' ' .. rev .. ' ' .. key)
  return rev
end

-- Bring the catalog in line with the model key after `version` changed or went.
function catalog.update(own, key, version)
  redis.call('HSET', key, 'rev', changed(own, key))
  redis.call('ZREM', own.dropped, key)
  local record = encode(key, version)
  if record then
    redis.call('HSET', own.catalog, key .. '@' .. version, record)
  else
    redis.call('HDEL', own.catalog, key .. '@' .. version)
  end
  local current = catalog.bare(key)
  if not current then
    return -- somebody has spoilt the model key
  end
  redis.call('HSET', own.catalog, key, encode(key, current, redis.call('HGET', key, 'last')))
  redis.call('HSET', own.models, key, redis.call('HGET', key, current .. ':tag') or '')
end

-- What is said of all versions has changed.
function catalog.rewrite(own, key)
  local last = tonumber(redis.call('HGET', key, 'last'))
  for version = 1, last do
    local record = encode(key, version)
    if record then
      redis.call('HSET', own.catalog, key .. '@' .. version, record)
    end
  end
  catalog.update(own, key, catalog.bare(key))
end

local function clear(own, key, last)
  for version = 1, last do
    redis.call('HDEL', own.catalog, key .. '@' .. version)
  end
  redis.call('HDEL', own.catalog, key)
  redis.call('HDEL', own.models, key)
end

-- What says that a model has gone outlives it for a day: nodes that were away must learn of it.
local function bury(own, key, rev)
  redis.call('ZADD', own.dropped, rev, key)
  local old = redis.call('ZRANGEBYSCORE', own.dropped, '-inf', ('%.0f'):format(node.now_ms() - TOMBSTONE_MS), 'LIMIT', '0', '16')
  for _, name in ipairs(old) do
    redis.call('ZREM', own.dropped, name)
    redis.call('ZREM', own.revs, name)
  end
end

-- The model has gone, with up to `last` versions.
function catalog.drop(own, key, last)
  clear(own, key, last)
  bury(own, key, changed(own, key))
end

-- The number of the highest version that has a record here; 0: there is no record.
local function last_known(own, key)
  local raw = redis.call('HGET', own.catalog, key)
  local record = raw and decode(raw)
  return record and (tonumber(record.last) or tonumber(record.version)) or 0
end

-- The records of a model, or of a trigger, as field, record, field, record...; none if it has gone.
function catalog.records(own, key)
  local flat = {}
  local trigger = redis.call('HGET', own.triggers, key)
  if trigger then
    return { key, trigger }
  end
  local bare = redis.call('HGET', own.catalog, key)
  if bare and not triggers.is_trigger(bare) then -- who may write models could have put it there
    flat[1], flat[2] = key, bare
    for version = 1, last_known(own, key) do
      local field = key .. '@' .. version
      local raw = redis.call('HGET', own.catalog, field)
      if raw then
        flat[#flat + 1] = field
        flat[#flat + 1] = raw
      end
    end
  end
  return flat
end

-- Take over what the home of a model says of it: the `count` arguments from argv[first] on, as of catalog.records.
function catalog.merge(own, key, rev, tag, argv, first, count)
  clear(own, key, last_known(own, key))
  redis.call('ZADD', own.revs, rev, key)
  local trigger = count == 2 and argv[first] == key and triggers.is_trigger(argv[first + 1]) and argv[first + 1]
  if not trigger then
    triggers.drop(own, key, true)
  end
  if count == 0 then
    bury(own, key, rev)
    return
  end
  redis.call('ZREM', own.dropped, key)
  if trigger then
    triggers.keep(own, key, trigger)
    return
  end
  redis.call('HSET', own.models, key, tag)
  for i = first, first + count - 1, 2 do
    redis.call('HSET', own.catalog, argv[i], argv[i + 1])
  end
end

-- The trigger at key was set, or is not as it was.
function catalog.update_trigger(own, key)
  redis.call('HSET', key, 'rev', changed(own, key))
  redis.call('ZREM', own.dropped, key)
  triggers.keep(own, key, triggers.encode(key))
end

-- The trigger has gone, and what is said of it here. Returns whether anything was.
function catalog.drop_trigger(own, key)
  if not triggers.drop(own, key, true) then
    return false
  end
  redis.pcall('UNLINK', keys.vouched(key))
  bury(own, key, changed(own, key))
  return true
end

local function refresh_trigger(own, key, rev)
  local raw = triggers.encode(key)
  local known = redis.call('ZSCORE', own.revs, key)
  if not raw then
    return catalog.drop_trigger(own, key)
  end
  if known and rev and tonumber(known) == tonumber(rev) and redis.call('HEXISTS', own.triggers, key) == 1 then
    return false
  end
  clear(own, key, last_known(own, key))
  catalog.update_trigger(own, key)
  return true
end

-- Make the catalog agree with the model key, which is on this node. Returns whether that changed anything.
function catalog.refresh(own, key)
  local found = redis.pcall('HMGET', key, 'type', 'rev', 'last')
  if not found.err and found[1] == 'trigger' then
    return refresh_trigger(own, key, found[2])
  end
  if catalog.drop_trigger(own, key) then
    if found.err or found[1] ~= 'model' then
      return true
    end
  end
  local last = not found.err and found[1] == 'model' and args.int(found[3] or '', 1)
  local known = redis.call('ZSCORE', own.revs, key)
  if not last then
    if not redis.call('HGET', own.catalog, key) then
      return false
    end
    catalog.drop(own, key, last_known(own, key))
    return true
  end
  if known and found[2] and tonumber(known) == tonumber(found[2]) then
    return false
  end
  clear(own, key, math.max(last, last_known(own, key)))
  for version = 1, last do
    local record = encode(key, version)
    if record then
      redis.call('HSET', own.catalog, key .. '@' .. version, record)
    end
  end
  local current = catalog.bare(key)
  if not current then
    return true
  end
  redis.call('HSET', own.catalog, key, encode(key, current, last))
  redis.call('HSET', own.models, key, redis.call('HGET', key, current .. ':tag') or '')
  redis.call('HSET', key, 'rev', changed(own, key))
  redis.call('ZREM', own.dropped, key)
  return true
end

-- Whether `model`, an id uid-version, is what the catalog knows as that version of key.
function catalog.has(own, key, version, model)
  local raw = redis.call('HGET', own.catalog, key .. '@' .. version)
  local record = raw and decode(raw)
  return record and record.id == model
end

-- Clear what a model, or a trigger, left behind that went without AI_MODELDEL or AI_TRIGGERDEL.
function catalog.forget(own, key)
  catalog.drop_trigger(own, key)
  local raw = redis.call('HGET', own.catalog, key)
  local record = raw and decode(raw)
  if not record then
    return
  end
  local last = tonumber(record.last or record.version)
  for version = 1, last do
    redis.call('UNLINK', own.stats .. record.uid .. '-' .. version)
  end
  catalog.drop(own, key, last)
end
