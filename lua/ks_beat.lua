--- KS_BEAT: an executor is alive: make its queues, show it, and clear away the traces of those that are not.
-- ARGV[1] consumer       the executor
-- ARGV[2] info           JSON that describes it
-- ARGV[3] ttl            milliseconds until it counts as gone
-- ARGV[4..] device       its queues
-- Returns: [server time in ms, node tag, what tells the secret of signatures from others; empty: entries are not signed,
--   [queue...]: of the queues of its devices for HIGH and LOW those that have ever been used here, which are to be served too]
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

-- The words for all queues of the devices: each device itself, whose queue is made here, and its priorities if they are used.
local function beat_queues(own, devices)
  local words, used = {}, {}
  for _, device in ipairs(devices) do
    words[#words + 1] = device
    beat_group(own.jobs .. device)
    for _, priority in ipairs({ '!H', '!L' }) do
      local stream = own.jobs .. device .. priority
      if redis.call('EXISTS', stream) == 1 then
        beat_group(stream)
        words[#words + 1] = device .. priority
        used[#used + 1] = device .. priority
      end
    end
  end
  return words, used
end

-- Jobs that are not there hold no bytes. A slot on the move or a failover may have taken a part of the account along.
local function beat_account(own, words)
  for _, word in ipairs(words) do
    local held = redis.pcall('GET', own.bytes .. word)
    if type(held) == 'string' and held ~= '0' and redis.pcall('XLEN', own.jobs .. word) == 0 then
      redis.call('UNLINK', own.bytes .. word)
    end
  end
end

-- A consumer with pending jobs stays until they have been taken over: DELCONSUMER would lose them.
local function beat_forget(own, words, name)
  for _, word in ipairs(words) do
    local pending = redis.pcall('XPENDING', own.jobs .. word, jobs.GROUP, '-', '+', 1, name)
    if pending.err or pending[1] then
      return
    end
    redis.pcall('XGROUP', 'DELCONSUMER', own.jobs .. word, jobs.GROUP, name)
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
  local words, used = beat_queues(own, devices)
  beat_account(own, words)
  redis.call('ZADD', own.executors, now, consumer)
  redis.call('SET', own.executor .. consumer, info, 'PX', ttl)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', own.executors, '-inf', now - 5 * ttl, 'LIMIT', 0, 8)) do
    beat_forget(own, words, name)
  end
  return { now, own.tag, seal.id(), used }
end
