--- KS_COMPLETE: end the jobs of one batch: outputs, replies, acknowledgement and counters in one step.
-- ARGV[1] device         the queue
-- ARGV[2] consumer       the executor that claims to hold the jobs
-- ARGV[3] held           how many entries it holds at most, to bound the look at them
-- ARGV[4] model          id of the version, for the counters; empty: none
-- ARGV[5] duration       of the run, microseconds
-- ARGV[6] samples        rows that were run
-- ARGV[7] errors         how many of the jobs failed
-- ARGV[8] bytes          counted bytes of each job, with spaces between; 0 if there are none
-- ARGV[9] jobs           how many follow, oldest first; for each:
-- ARGV[10..] job         id, deadline, ticket, corr, reply, n captures, capture..., n outputs, (key, V value | S staged key)...
-- Returns: one digit per job: 1 answered, 0 no longer this executor's, 2 too late, 3 answered with an error found here
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

-- Write the outputs, or say why not; nothing is written when one of them cannot be.
local function complete_outputs(argv, i, count)
  for n = 0, count - 1 do
    local key, how, value = argv[i + 3 * n], argv[i + 3 * n + 1], argv[i + 3 * n + 2]
    local there = how == 'V' or redis.pcall('EXISTS', value)
    if type(there) == 'table' then
      return raised_text(there)
    elseif there == 0 then
      return 'OOM an output could not be stored: the server is at maxmemory. Free memory or raise maxmemory, then call again'
    end
    -- On Valkey a RENAME across slots would break the node.
    if how == 'S' and not keys.is_output(value, key) then
      return 'BADARG an output was staged under a name that is not in the slot of its key'
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

-- Where each job begins, and its deadline; BADARG unless the arguments are exactly what they say. Nothing has been
-- written yet. (An id that is none is just not held.)
local function complete_walk(argv, count)
  local starts, deadlines, i, last = {}, {}, 10, #argv
  for n = 1, count do
    starts[n] = i
    deadlines[n] = args.int(argv[i + 1] or '')
    local captures = args.int(argv[i + 5] or '', 0, last)
    local amount = captures and args.int(argv[i + 6 + captures] or '', 0, last)
    if not amount or not deadlines[n] then
      raise('BADARG', 'job ' .. n .. ' of ' .. count .. ' is malformed: KS_COMPLETE is called by executors only')
    end
    i = i + 7 + captures + 3 * amount
  end
  if i ~= last + 1 or not jobs.is_id(argv[10]) or not jobs.is_id(argv[starts[count]]) then
    raise('BADARG', count .. ' jobs do not fill the arguments: KS_COMPLETE is called by executors only')
  end
  return starts, deadlines
end

-- A batch may have more jobs than unpack() takes.
local function complete_remove(stream, ids)
  for from = 1, #ids, 1000 do
    local to = math.min(from + 999, #ids)
    redis.call('XACK', stream, jobs.GROUP, unpack(ids, from, to))
    redis.call('XDEL', stream, unpack(ids, from, to))
  end
end

-- Counters of a version that has been deleted meanwhile go some time after it.
local function complete_keeps(own, stream, id, model)
  local fields = jobs.entry(stream, id)
  local header = fields and jobs.header(fields)
  return header and catalog.has(own, header[jobs.KEY], header[jobs.VERSION], model)
end

local function complete_count(own, stream, ids, model, duration, samples, errors)
  local stats = own.stats .. model
  -- Counters that somebody spoilt are no reason to fail.
  local calls = redis.pcall('HINCRBY', stats, 'calls', ('%d'):format(#ids))
  redis.pcall('HINCRBY', stats, 'duration', duration)
  redis.pcall('HINCRBY', stats, 'samples', samples)
  if errors > 0 then
    redis.pcall('HINCRBY', stats, 'errors', errors)
  end
  if calls == #ids and not complete_keeps(own, stream, ids[1], model) then
    redis.call('PEXPIRE', stats, models.GONE_MS)
  end
end

local function KS_COMPLETE(_, ARGV)
  local device, consumer, held, model = ARGV[1] or '', ARGV[2], args.int(ARGV[3] or '', 1), ARGV[4]
  local duration, samples, errors = args.int(ARGV[5] or ''), args.int(ARGV[6] or ''), args.int(ARGV[7] or '')
  local bytes, count = ARGV[8], args.int(ARGV[9] or '', 1, #ARGV)
  if not jobs.is_device(device) or not held or not duration or not samples or not errors or not count then
    raise('BADARG', 'KS_COMPLETE is called by executors only')
  end
  local starts, deadlines = complete_walk(ARGV, count)
  local own = node.keys()
  local stream = own.jobs .. device
  local mine = jobs.held(stream, consumer, ARGV[10], ARGV[starts[count]], ARGV[3])
  local now = node.now_ms()
  local counted = bytes ~= '0' and string.gmatch(bytes, '%d+')
  local released = 0
  local ids, status = {}, {}
  for n = 1, count do
    local i = starts[n]
    local id, deadline, ticket, corr, reply = ARGV[i], deadlines[n], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local captures = tonumber(ARGV[i + 5])
    local outputs = i + 6 + captures
    local amount = tonumber(ARGV[outputs])
    local size = counted and tonumber(counted() or 0) or 0
    if not mine[id] then
      status[n] = '0'
      complete_unstage(ARGV, outputs + 1, amount)
    else
      -- The same entry twice in one call is answered once.
      mine[id] = nil
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
      released = released + size
      ids[#ids + 1] = id
    end
  end
  if ids[1] then
    if model ~= '' then
      -- While the entries are still there: they know the name of the model.
      complete_count(own, stream, ids, model, ARGV[5], ARGV[6], errors)
    end
    complete_remove(stream, ids)
    if released > 0 then
      redis.pcall('DECRBY', own.bytes .. device, released)
    end
  end
  return table.concat(status)
end
