--- KS_LEAVE: an executor ends in good order: what it has not ended goes back to the others at once.
-- ARGV[1] consumer       the executor
-- ARGV[2..] queue        the words for its queues (node.queue); behind a !, <queue>/<entry id> of the jobs that it did run: those
--                        keep their count of deliveries, all others get back the one that brought them here
-- Returns: OK
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

-- Whoever looks next for jobs that nobody extends finds these. Returns how many there were.
local function leave_give_back(stream, word, consumer, ran)
  local from, count = '-', 0
  repeat
    local found = redis.pcall('XPENDING', stream, jobs.GROUP, from, '+', '1000', consumer)
    if found.err then
      return 0 -- no queue, no group: nothing is held
    end
    for _, pending in ipairs(found) do
      local id, delivered = pending[1], pending[4]
      local kept = (ran[word .. '/' .. id] or delivered == 0) and delivered or delivered - 1
      redis.call('XCLAIM', stream, jobs.GROUP, consumer, '0', id, 'IDLE', jobs.GIVEN_BACK_MS, 'RETRYCOUNT', kept, 'JUSTID')
      from = '(' .. id
    end
    count = count + #found
  until #found < 1000
  return count
end

local function leave_parsed(argv)
  local queues, ran, behind = {}, {}, false
  for i = 2, #argv do
    local word = argv[i]
    if word == '!' then
      behind = true
    elseif behind then
      ran[word] = true
    elseif jobs.is_queue(word) then
      queues[#queues + 1] = word
    else
      raise('BADARG', 'KS_LEAVE: no name of a queue')
    end
  end
  return queues, ran
end

local function KS_LEAVE(_, ARGV)
  local consumer = ARGV[1]
  if not consumer then
    raise('BADARG', 'KS_LEAVE is called by executors only')
  end
  local queues, ran = leave_parsed(ARGV)
  local own = node.keys()
  local empty = true
  for _, word in ipairs(queues) do
    local here, _, stream = pcall(node.queue, word)
    if not here then
      empty = false -- its slot is on the move: its jobs wait for the end of their leases
    elseif leave_give_back(stream, word, consumer, ran) > 0 then
      empty = false
    else
      redis.pcall('XGROUP', 'DELCONSUMER', stream, jobs.GROUP, consumer)
    end
  end
  if empty then
    redis.call('ZREM', own.executors, consumer)
  end
  redis.call('UNLINK', own.executor .. consumer)
  return redis.status_reply('OK')
end
