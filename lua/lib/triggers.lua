--- @requires guard args keys node
-- Triggers as records: what their keys say (docs/protocol.md section 3), and what each node keeps of all of them.

local triggers = {}

triggers.MAX_ONSET = 64 -- of those that fire when a key is set: each write looks at all of them
triggers.REV = '@' -- field of the hash of those that changes with it, and of a catalog that is complete; no trigger is called so
triggers.KINDS = { publish = true, set = true, stream = true, schedule = true }

local decoded, decoded_count = {}, 0

local function trigger_count(number)
  return number == nil or (type(number) == 'number' and number >= 1 and number <= args.MAX_INT and number % 1 == 0)
end

local function trigger_rate(rate)
  return rate == nil or (type(rate) == 'table' and rate[1] ~= nil and rate[2] ~= nil and trigger_count(rate[1]) and trigger_count(rate[2]))
end

local TRIGGER_TEXTS = { 'key', 'uid', 'state', 'source', 'channel', 'group', 'from', 'onerror' }

-- Another client may have written anything there.
local function is_trigger_record(record)
  if type(record) ~= 'table' or record.kind ~= 'trigger' or not triggers.KINDS[record.on] then
    return false
  end
  for _, name in ipairs(TRIGGER_TEXTS) do
    if type(record[name]) ~= 'string' then
      return false
    end
  end
  return args.is_texts(record.run, 4) and (record.keys == nil or args.is_texts(record.keys, 1))
    and (record.results == nil or type(record.results) == 'string') and (record.members == nil or type(record.members) == 'string')
    and trigger_count(record.maxlen) and trigger_count(record.inflight) and trigger_count(record.ttl) and trigger_count(record.every) and trigger_rate(record.rate)
end

-- A record as a table, which may keep what is made of it; nil if it is none.
function triggers.decode(raw)
  local record = decoded[raw]
  if record then
    return record
  end
  local ok
  ok, record = pcall(cjson.decode, raw)
  if not ok or not is_trigger_record(record) then
    return nil
  end
  if decoded_count >= 256 then
    decoded, decoded_count = {}, 0
  end
  decoded[raw] = record
  decoded_count = decoded_count + 1
  return record
end

-- The record that the key of a trigger stands for, as JSON; nil where it holds something else.
function triggers.encode(key)
  local found = redis.pcall('HMGET', key, 'type', 'uid', 'state', 'spec')
  if found.err or found[1] ~= 'trigger' or not found[2] or not found[4] or string.sub(found[4], 1, 2) ~= '{"' then
    return nil
  end
  -- Executors do what a trigger says with rights of their own: it must be one that was checked.
  local vouched = redis.pcall('GET', keys.vouched(key))
  if type(vouched) == 'table' and string.find(vouched.err, 'non local', 1, true) then
    error(vouched, 0) -- its slot is on the move
  elseif vouched ~= redis.sha1hex(found[2] .. found[4]) then
    return nil
  end
  local raw = '{"key":' .. cjson.encode(key) .. ',"uid":' .. cjson.encode(found[2] or '') .. ',"state":' .. cjson.encode(found[3] or '')
    .. ',"kind":"trigger",' .. string.sub(found[4], 2)
  return triggers.decode(raw) and raw
end

-- Whether the node, whose tag is new, has not yet been told of all triggers.
function triggers.incomplete(own)
  return own.clustered and redis.call('HEXISTS', own.catalog, triggers.REV) == 0
end

-- What was found before, for the moment in which a node has another tag and an executor has not yet told it anew.
local recent, recent_count = {}, 0

function triggers.remember(record)
  if not recent[record.key] then
    if recent_count >= 256 then
      recent, recent_count = {}, 0
    end
    recent_count = recent_count + 1
  end
  recent[record.key] = record
end

-- Say that a trigger is as AI_TRIGGERSET has checked it.
function triggers.vouch(key, uid, spec)
  redis.call('SET', keys.vouched(key), redis.sha1hex(uid .. spec))
end

function triggers.find(own, name)
  local raw = redis.call('HGET', own.triggers, name)
  local record = raw and triggers.decode(raw)
  if not record then
    return not raw and recent[name] and triggers.incomplete(own) and recent[name] or nil
  end
  triggers.remember(record)
  return record
end

function triggers.get(own, name)
  return triggers.find(own, name)
    or raise('NOTRIGGER', "no trigger '" .. args.printable(name) .. "': set it with AI_TRIGGERSET, or list them with AI_TRIGGERSCAN")
end

-- Whether text is the record of a trigger, as opposed to that of a version of a model.
function triggers.is_trigger(raw)
  return string.find(raw, '"kind":"trigger"', 1, true) ~= nil and triggers.decode(raw) ~= nil
end

local function onset_changed(own)
  if redis.call('HLEN', own.onset) > (redis.call('HEXISTS', own.onset, triggers.REV)) then
    redis.call('HSET', own.onset, triggers.REV, node.unique())
  else
    redis.call('UNLINK', own.onset)
  end
end

-- Keep a record on this node, in place of what it knew of that name.
function triggers.keep(own, name, raw)
  redis.call('HSET', own.triggers, name, raw)
  if triggers.decode(raw).on == 'set' then
    redis.call('HSET', own.onset, name, raw)
    onset_changed(own)
  elseif redis.call('HDEL', own.onset, name) == 1 then
    onset_changed(own)
  end
end

-- Forget a trigger; with `counters` for good. Returns whether it was known.
function triggers.drop(own, name, counters)
  -- Most callers may read what is there, and change nothing.
  if redis.call('HEXISTS', own.triggers, name) == 0 then
    return false
  end
  redis.call('HDEL', own.triggers, name)
  if redis.call('HDEL', own.onset, name) == 1 then
    onset_changed(own)
  end
  if counters then
    redis.call('UNLINK', own.tstats .. name)
    redis.call('UNLINK', own.inflight .. name)
    redis.call('UNLINK', own.latest .. name)
    redis.call('UNLINK', own.due .. name)
  end
  return true
end

-- The uid of the trigger at a key; nil where there is nothing. Any other value is refused.
function triggers.uid(key)
  local found = redis.pcall('HMGET', key, 'type', 'uid')
  if found.err and not string.find(found.err, 'WRONGTYPE', 1, true) then
    error(found, 0)
  end
  if not found.err and found[1] == 'trigger' and found[2] then
    return found[2]
  end
  if redis.call('EXISTS', key) == 1 then
    local what = not found.err and found[1] == 'model' and 'a model' or 'something else'
    raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds " .. what .. ', not a trigger')
  end
  return nil
end

function triggers.existing(key)
  return triggers.uid(key)
    or raise('NOTRIGGER', "no trigger '" .. args.printable(key) .. "': set it with AI_TRIGGERSET, or list them with AI_TRIGGERSCAN")
end

-- A slot of which the keys that a trigger follows are, by the name of one of them; nil: they may be anywhere.
function triggers.place(record)
  if record.on == 'set' then
    return nil
  end
  return record.members or (record.keys and record.keys[1]) or record.source
end
