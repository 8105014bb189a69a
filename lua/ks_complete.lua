--- KS_COMPLETE: end the jobs of one batch: outputs, replies, acknowledgement and counters in one step.
-- ARGV[1] device         the queue
-- ARGV[2] consumer       the executor that claims to hold the jobs
-- ARGV[3] held           how many entries it holds at most, to bound the look at them
-- ARGV[4] model          id of the version, for the counters; empty: none
-- ARGV[5] duration       of the run, microseconds
-- ARGV[6] samples        rows that were run
-- ARGV[7] errors         how many of the jobs failed
-- ARGV[8] bytes          counted bytes of the jobs
-- ARGV[9] jobs           how many follow, oldest first; for each:
-- ARGV[10..] job         id, deadline, ticket, corr, reply, n captures, capture..., n outputs, (key, V value | S staged key)...
-- Returns: one digit per job: 1 answered, 0 no longer this executor's, 2 too late, 3 answered with an error found here
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

-- Write the outputs, or say why not; nothing is written when one of them cannot be.
local function complete_outputs(argv, i, count)
  for n = 0, count - 1 do
    local key, how, value = argv[i + 3 * n], argv[i + 3 * n + 1], argv[i + 3 * n + 2]
    if how ~= 'V' and redis.call('EXISTS', value) == 0 then
      return 'OOM an output could not be stored: the server is at maxmemory. Free memory or raise maxmemory, then call again'
    end
    local problem = how ~= 'K' and submit.writable(key)
    if problem then
      return problem
    end
  end
  for n = 0, count - 1 do
    local key, how, value = argv[i + 3 * n], argv[i + 3 * n + 1], argv[i + 3 * n + 2]
    if how == 'V' then
      redis.call('SET', key, value)
    elseif how == 'S' then
      redis.call('UNLINK', key)
      redis.call('RENAME', value, key)
      redis.call('PERSIST', key)
    end
  end
end

local function complete_unstage(argv, i, count)
  for n = 0, count - 1 do
    if argv[i + 3 * n + 1] ~= 'V' then
      redis.pcall('UNLINK', argv[i + 3 * n + 2])
    end
  end
end

local function complete_held(stream, consumer, first, last, held)
  local mine = {}
  for _, entry in ipairs(redis.call('XPENDING', stream, jobs.GROUP, first, last, held, consumer)) do
    mine[entry[1]] = true
  end
  return mine
end

local function complete_range(argv, count)
  local first, last = argv[10], nil
  local i = 10
  for _ = 1, count do
    last = argv[i]
    i = i + 6 + tonumber(argv[i + 5])
    i = i + 1 + 3 * tonumber(argv[i])
  end
  return first, last
end

local function KS_COMPLETE(_, ARGV)
  local device, consumer, held, model = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
  local duration, samples, errors, bytes, count = ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9] or '')
  if not count or not ARGV[10] then
    raise('BADARG', 'KS_COMPLETE is called by executors only')
  end
  local own = node.keys()
  local stream = own.jobs .. device
  local first, last = ARGV[10], ARGV[10]
  if count > 1 then
    first, last = complete_range(ARGV, count)
  end
  local mine = complete_held(stream, consumer, first, last, held)
  local now = node.now_ms()
  local ids, status = {}, {}
  local i = 10
  for n = 1, count do
    local id, deadline, ticket, corr, reply = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local captures = tonumber(ARGV[i + 5])
    local outputs = i + 6 + captures
    local amount = tonumber(ARGV[outputs])
    if not mine[id] then
      status[n] = '0'
      complete_unstage(ARGV, outputs + 1, amount)
    else
      status[n] = '1'
      if now > deadline then
        status[n] = '2'
        reply = 'TIMEDOUT the deadline passed ' .. (now - deadline) .. ' ms before the job ended'
        complete_unstage(ARGV, outputs + 1, amount)
      elseif amount > 0 then
        local problem = complete_outputs(ARGV, outputs + 1, amount)
        if problem then
          status[n] = '3'
          reply = problem
          complete_unstage(ARGV, outputs + 1, amount)
        end
      end
      for c = i + 6, i + 5 + captures do
        redis.pcall('UNLINK', ARGV[c])
      end
      jobs.reply(own, device, id, deadline, ticket, corr, reply)
      ids[#ids + 1] = id
    end
    i = outputs + 1 + 3 * amount
  end
  if ids[1] then
    redis.call('XACK', stream, jobs.GROUP, unpack(ids))
    redis.call('XDEL', stream, unpack(ids))
    if bytes ~= '0' then
      redis.call('DECRBY', own.bytes .. device, bytes)
    end
    if model ~= '' then
      local stats = own.stats .. model
      redis.call('HINCRBY', stats, 'calls', #ids)
      redis.call('HINCRBY', stats, 'duration', duration)
      redis.call('HINCRBY', stats, 'samples', samples)
      if errors ~= '0' then
        redis.call('HINCRBY', stats, 'errors', errors)
      end
    end
  end
  return table.concat(status)
end
