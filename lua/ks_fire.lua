--- KS_FIRE: start the run that an event asks for which an executor has seen.
-- ARGV[1] trigger        its name
-- ARGV[2] consumer       the executor: it must lead the trigger on this node, or hold the entry of the stream
-- ARGV[3] source         of the event: id of the entry, member, key, or what tells a message
-- ARGV[4] count          variables that follow
-- ARGV[5..] variable     name, value...; of a notification `key`, and `events`, how many it stands for, 1 if left out
-- Returns: [status, text]: FIRED job; DOUBLE: there is a run for it, or was; DROPPED RATE, INFLIGHT, PAUSED, BUSY or PATTERN;
--   WAIT ms: of a stream, nothing is lost; LOST: no longer this executor's; ERROR text: told already
-- Errors: BADARG NOTRIGGER TRYAGAIN OOM
-- Flags: allow-cross-slot-keys

local function fire_variables(argv, count)
  local vars = {}
  for i = 5, 3 + 2 * count, 2 do
    vars[argv[i]] = argv[i + 1]
  end
  return vars
end

-- Whether the entry is pending for the consumer.
local function fire_holds(record, consumer, source)
  local found = redis.pcall('XPENDING', record.source, record.group, source, source, '1', consumer)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) or string.find(found.err, 'WRONGTYPE', 1, true) then
      return false
    end
    error(found, 0)
  end
  return found[1] ~= nil
end

-- Whether a run for the entry is under way. The mark of one that never ended, since its job was lost, holds no longer than a
-- job may.
local function fire_marked(mark, source)
  local job, deadline = string.match(redis.call('HGET', mark, source) or '', '^(%S+) (%d+)$')
  if job and tonumber(deadline) + jobs.REPLY_GRACE_MS > node.now_ms() then
    return job
  end
end

-- Of the writes that notifications stand for those that have started their runs in the call that wrote. Returns whether any are
-- left over.
local function fire_is_foreign(record, key, count)
  local name = keys.started(key, record.key)
  local started = tonumber(redis.call('GET', name) or 0) or 0
  if started <= 0 then
    return true
  elseif started <= count then
    redis.call('UNLINK', name)
    return started < count
  end
  redis.call('DECRBY', name, count)
  return false
end

local function fire_outcome(own, record, source, status, text)
  if status == 'REFUSED' then
    local code = string.match(text, '^%u+')
    if code == 'BUSY' and record.on == 'stream' then
      return { 'WAIT', string.match(text, 'retry in (%d+) ms$') or '100' }
    elseif code == 'BUSY' then
      status, text = 'DROPPED', 'BUSY'
    elseif code == 'NOPERM' then
      status = 'ERROR'
    else
      error({ err = text }, 0) -- nothing has happened: the executor comes again
    end
  end
  if status == 'DROPPED' then
    events.count(own, record.key, 'dropped')
  elseif status == 'ERROR' then
    events.failed(own, record, source, text)
  end
  return { status, tostring(text) }
end

local function KS_FIRE(_, ARGV)
  local name, consumer, source = ARGV[1], ARGV[2], ARGV[3]
  local count = args.int(ARGV[4] or '', 0, 10000)
  if not count or #ARGV ~= 4 + 2 * count then
    raise('BADARG', 'KS_FIRE is called by executors only')
  end
  local own = node.keys()
  local record = triggers.get(own, name)
  local vars = fire_variables(ARGV, count)
  local mark
  if record.on == 'stream' then
    if not jobs.is_id(source) then
      raise('BADARG', 'KS_FIRE: the source of an event on a stream is the id of its entry')
    end
    mark = keys.fired(record.source, name)
    if not fire_holds(record, consumer, source) then
      return { 'LOST', 'the entry is not pending for this executor' }
    end
    local job = fire_marked(mark, source)
    if job then
      return { 'DOUBLE', job }
    end
    vars.id = source
  elseif redis.call('GET', own.lead .. name) ~= consumer then
    return { 'LOST', 'this executor does not lead the trigger' }
  end
  if record.on == 'set' then
    local key = vars.key or source
    local events_seen = args.int(vars.events or '1', 1, 1000000) or 1
    vars = events.captures(record, key)
    if not vars or string.sub(key, 1, 4) == 'ks:{' then
      return { 'DROPPED', 'PATTERN' }
    elseif not fire_is_foreign(record, key, events_seen) then
      return { 'DOUBLE', '' }
    end
    source = key
  end
  local later = {}
  local status, text, deadline = firing.start(own, record, vars, source, {}, later)
  if status == 'FIRED' and mark then
    redis.call('HSET', mark, source, text .. ' ' .. ('%.0f'):format(deadline))
    firing.keep(mark, deadline + jobs.REPLY_GRACE_MS)
  end
  firing.settle(later)
  return fire_outcome(own, record, source, status, text)
end
