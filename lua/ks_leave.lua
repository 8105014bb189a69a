--- KS_LEAVE: an executor ends in good order.
-- ARGV[1] consumer       the executor
-- ARGV[2..] queue        the words for its queues (node.queue)
-- Returns: OK
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function KS_LEAVE(_, ARGV)
  local consumer = ARGV[1]
  if not consumer then
    raise('BADARG', 'KS_LEAVE is called by executors only')
  end
  local own = node.keys()
  local empty = true
  for i = 2, #ARGV do
    if not jobs.is_queue(ARGV[i]) then
      raise('BADARG', 'KS_LEAVE: no name of a queue')
    end
    local _, stream = node.queue(ARGV[i])
    local pending = redis.pcall('XPENDING', stream, jobs.GROUP, '-', '+', 1, consumer)
    if pending[1] then
      empty = false
    elseif not pending.err then
      redis.pcall('XGROUP', 'DELCONSUMER', stream, jobs.GROUP, consumer)
    end
  end
  if empty then
    redis.call('ZREM', own.executors, consumer)
  end
  redis.call('UNLINK', own.executor .. consumer)
  return redis.status_reply('OK')
end
