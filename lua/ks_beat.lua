--- KS_BEAT: an executor is alive: make its queues, show it, and clear away the traces of those that are not.
-- ARGV[1] consumer       the executor
-- ARGV[2] info           JSON that describes it
-- ARGV[3] ttl            milliseconds until it counts as gone
-- ARGV[4..] device       its queues
-- Returns: [server time in ms, node tag, what tells the secret of signatures from others; empty: entries are not signed]
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function beat_group(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if not groups.err then
    for _, group in ipairs(groups) do
      if group[2] == jobs.GROUP then
        return
      end
    end
  end
  -- From 0, not $: jobs that came before the group are jobs too.
  redis.pcall('XGROUP', 'CREATE', stream, jobs.GROUP, '0', 'MKSTREAM')
end

-- A consumer with pending jobs stays until they have been taken over: DELCONSUMER would lose them.
local function beat_forget(own, devices, name)
  for _, device in ipairs(devices) do
    local pending = redis.pcall('XPENDING', own.jobs .. device, jobs.GROUP, '-', '+', 1, name)
    if pending.err or pending[1] then
      return
    end
    redis.pcall('XGROUP', 'DELCONSUMER', own.jobs .. device, jobs.GROUP, name)
  end
  redis.call('ZREM', own.executors, name)
end

local function KS_BEAT(_, ARGV)
  local consumer, info, ttl = ARGV[1], ARGV[2], args.int(ARGV[3] or '', 1, 86400000)
  local devices = {}
  for i = 4, #ARGV do
    devices[i - 3] = jobs.is_device(ARGV[i]) and ARGV[i] or raise('BADARG', 'KS_BEAT: no name of a queue')
  end
  if not ttl or not devices[1] then
    raise('BADARG', 'KS_BEAT is called by executors only')
  end
  local own = node.keys()
  local now = node.now_ms()
  for _, device in ipairs(devices) do
    beat_group(own.jobs .. device)
  end
  redis.call('ZADD', own.executors, now, consumer)
  redis.call('SET', own.executor .. consumer, info, 'PX', ttl)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', own.executors, '-inf', now - 5 * ttl, 'LIMIT', 0, 8)) do
    beat_forget(own, devices, name)
  end
  return { now, own.tag, seal.id() }
end
