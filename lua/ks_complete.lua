--- KS_COMPLETE: end the jobs of one batch: outputs, replies, acknowledgement and counters in one step.
-- ARGV[1] queue          the word for it (node.queue)
-- ARGV[2] consumer       the executor that claims to hold the jobs
-- ARGV[3] held           how many entries it holds at most, to bound the look at them
-- ARGV[4] model          id of the version, for the counters; empty: none
-- ARGV[5] duration       of the run, microseconds
-- ARGV[6] samples        rows that were run
-- ARGV[7] errors         how many of the jobs failed
-- ARGV[8] bytes          counted bytes of each job, with spaces between; 0 if there are none. Of a job that counts for its model:
--                        bytes:mark:uid
-- ARGV[9] jobs           how many follow, oldest first; for each:
-- ARGV[10..] job         id, deadline, ticket, corr, reply, number of arguments that follow for this job (mostly 0);
--                        if any: n captures, capture..., (key, V value | S staged key)... of its outputs
-- Returns: one digit per job: 1 answered, 0 no longer this executor's, 2 too late, 3 answered with an error found here,
--   4 ended, but its ticket is on another node, 5 not ended, since an output key is on another node, or on its way there;
--   with a 4 among them [digits, number of the job, ticket, reply...]
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

-- Write the outputs, or say why not; nothing is written when one of them cannot be.
local function complete_outputs(argv, first, last)
  for i = first, last, 3 do
    local key, how, value = argv[i], argv[i + 1], argv[i + 2]
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
    local problem = how ~= 'K' and inputs.writable(key)
    if problem then
      return problem
    end
  end
  for i = first, last, 3 do
    local key, how, value = argv[i], argv[i + 1], argv[i + 2]
    if how == 'V' then
      redis.call('SET', key, value)
    elseif how == 'S' then
      redis.call('UNLINK', key)
      redis.call('RENAME', value, key)
      redis.call('PERSIST', key)
    end
  end
end

local function complete_unstage(argv, first, last)
  for i = first, last, 3 do
    if argv[i + 1] ~= 'V' then
      redis.pcall('UNLINK', argv[i + 2])
    end
  end
end

local function complete_malformed(text)
  raise('BADARG', text .. ': KS_COMPLETE is called by executors only')
end

-- Where each job begins, and its deadline; BADARG unless the arguments are exactly what they say. Nothing has been
-- written yet. (An id that is none is just not held.)
local function complete_walk(argv, count)
  local starts, deadlines, i, last = {}, {}, 10, #argv
  for n = 1, count do
    local more = argv[i + 5]
    local deadline = args.int(argv[i + 1] or '')
    starts[n], deadlines[n] = i, deadline
    if more == '0' then
      i = i + 6
    else
      more = args.int(more or '', 1, last)
      local captures = more and args.int(argv[i + 6] or '', 0, more - 1)
      if not captures or (more - 1 - captures) % 3 ~= 0 then
        complete_malformed('job ' .. n .. ' of ' .. count .. ' is malformed')
      end
      i = i + 6 + more
    end
    if not deadline then
      complete_malformed('job ' .. n .. ' of ' .. count .. ' has no deadline')
    end
  end
  if i ~= last + 1 or not jobs.is_id(argv[10]) or not jobs.is_id(argv[starts[count]]) then
    complete_malformed(count .. ' jobs do not fill the arguments')
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
  local header = fields and jobs.header(fields, id)
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

-- The keys that outputs were written to.
local function complete_written(argv, first, last)
  local written
  for i = first, last, 3 do
    if argv[i + 1] ~= 'K' then
      written = written or {}
      written[#written + 1] = argv[i]
    end
  end
  return written
end

-- Start the runs of triggers ON SET that the outputs of this batch fire: {{keys, ticket, corr}...}. What comes in between is theirs.
local function complete_fire(fired)
  local own = node.keys()
  local list = onset.all(own)
  for _, one in ipairs(list and fired or {}) do
    local chain = events.chain(one[2], one[3])
    for _, key in ipairs(one[1]) do
      onset.changed(own, list, key, chain)
    end
  end
end

-- What a job has besides its reply. Returns the reply, the digit of its status, and the keys that were written.
local function complete_keys(argv, i, reply, late)
  local captures = i + 6 + tonumber(argv[i + 6])
  local last = i + 5 + tonumber(argv[i + 5])
  local problem = late or complete_outputs(argv, captures + 1, last)
  if problem then
    complete_unstage(argv, captures + 1, last)
    if not late and string.find(problem, '^TRYAGAIN ') then
      return nil, '5'
    end
  end
  for c = i + 7, captures do
    redis.pcall('UNLINK', argv[c])
  end
  local digit = late and '2' or problem and '3' or '1'
  return problem or reply, digit, not problem and complete_written(argv, captures + 1, last)
end

-- What a job counts in its queue, and of its mark the bytes and whose they are.
local function complete_size(text)
  local size = tonumber(text)
  if size then
    return size
  end
  local counts, mark, uid = string.match(text, '^(%d+):(%d+):(%w+)$')
  return tonumber(counts or 0), tonumber(mark), uid
end

local function complete_marked(marked, uid, mark)
  local sum = marked[uid]
  if not sum then
    sum = { jobs = 0, bytes = 0 }
    marked[uid] = sum
  end
  sum.jobs, sum.bytes = sum.jobs + 1, sum.bytes + mark
  return marked
end

local function KS_COMPLETE(_, ARGV)
  local consumer, held, model = ARGV[2], args.int(ARGV[3] or '', 1), ARGV[4]
  local duration, samples, errors = args.int(ARGV[5] or ''), args.int(ARGV[6] or ''), args.int(ARGV[7] or '')
  local bytes, count = ARGV[8], args.int(ARGV[9] or '', 1, #ARGV)
  if not jobs.is_queue(ARGV[1] or '') or not held or not duration or not samples or not errors or not count then
    complete_malformed('arguments are missing')
  end
  local starts, deadlines = complete_walk(ARGV, count)
  local own, stream, device = node.queue(ARGV[1])
  local mine = jobs.held(stream, consumer, ARGV[10], ARGV[starts[count]], ARGV[3])
  local now = node.now_ms()
  local sizes = bytes ~= '0' and string.gmatch(bytes, '%S+')
  local released, marked = 0, nil
  local ids, status, shared = {}, {}, nil
  local replies = own.clustered and {} -- what was to be said on shared lists
  local relays -- what could not be said here
  local fired -- outputs in keys
  for n = 1, count do
    local i, deadline = starts[n], deadlines[n]
    local id, reply, digit, written = ARGV[i], ARGV[i + 4], '1', nil
    local size, mark, uid = 0, nil, nil
    if sizes then
      size, mark, uid = complete_size(sizes() or '0')
    end
    if not mine[id] then
      digit = '0'
      if ARGV[i + 5] ~= '0' then
        complete_unstage(ARGV, i + 7 + tonumber(ARGV[i + 6]), i + 5 + tonumber(ARGV[i + 5]))
      end
    else
      -- The same entry twice in one call is answered once.
      mine[id] = nil
      local late = now > deadline and 'TIMEDOUT the deadline passed ' .. (now - deadline) .. ' ms before the job ended'
      if late then
        reply, digit = late, '2'
      end
      if ARGV[i + 5] ~= '0' then
        reply, digit, written = complete_keys(ARGV, i, reply, late)
      end
      if reply then
        local ticket, corr = ARGV[i + 2], ARGV[i + 3]
        if corr == '' then
          if not jobs.reply(own, device, id, deadline, ticket, '', reply) then
            relays = relays or {}
            relays[#relays + 1] = n
            relays[#relays + 1] = ticket ~= '' and ticket or own.ticket .. device .. '/' .. id
            relays[#relays + 1] = reply
            digit = '4'
          end
        elseif corr:byte() ~= 91 -- [, as jobs.is_event: this is done for each job
          or not events.ended(node.word(own, device) .. '/' .. id, deadline, ticket, corr, reply, written) then
          reply = corr .. ' ' .. reply
          shared = shared or {}
          jobs.collect(shared, ticket, reply, deadline)
        end
        if replies then
          replies[n] = reply
        end
        if written then
          fired = fired or {}
          fired[#fired + 1] = { written, ticket, corr }
        end
        released = released + size
        if mark then
          marked = complete_marked(marked or {}, uid, mark)
        end
        ids[#ids + 1] = id
      end
    end
    status[n] = digit
  end
  if ids[1] then
    local lost = shared and jobs.push_collected(shared)
    if lost then
      relays = relays or {}
      for n = 1, count do
        local ticket = ARGV[starts[n] + 2]
        if status[n] ~= '0' and status[n] ~= '5' and lost[ticket] and ARGV[starts[n] + 3] ~= '' then
          relays[#relays + 1] = n
          relays[#relays + 1] = ticket
          relays[#relays + 1] = replies[n]
          status[n] = '4'
        end
      end
    end
    if model ~= '' then
      -- While the entries are still there: they know the name of the model.
      complete_count(own, stream, ids, model, ARGV[5], ARGV[6], errors)
    end
    complete_remove(stream, ids)
    pace.note(stream, #ids, now)
    if released > 0 then
      redis.pcall('DECRBY', own.bytes .. device, released)
    end
    for of, sum in pairs(marked or {}) do
      counted.take(counted.name(own, of, device), sum.jobs, sum.bytes, now)
    end
    if fired then
      local ok, problem = pcall(complete_fire, fired)
      if not ok then
        redis.log(redis.LOG_WARNING, 'keyside: triggers ON SET were not fired by outputs: ' .. raised_text(problem))
      end
    end
  end
  if relays then
    return { table.concat(status), unpack(relays) }
  end
  return table.concat(status)
end
