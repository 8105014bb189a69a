--- @requires guard args keys node jobs triggers templates predict submit events
-- From an event to the run that a trigger starts for it.

local firing = {}

firing.MAX_CHAIN = 8
local ROOM_WAIT_MS = 50 -- how long an entry of a stream waits for runs under way to end
local PAUSED_WAIT_MS = 1000

-- What a start may be refused with though nothing is wrong with the event: it may be sent again.
local FIRING_REFUSALS = { BUSY = true, OOM = true, TRYAGAIN = true, NOPERM = true }

local function firing_loop(record, chain)
  if #chain >= firing.MAX_CHAIN then
    return 'LOOP a chain of more than ' .. firing.MAX_CHAIN .. ' triggers: ' .. args.printable(table.concat(chain, ' -> '), 512)
  end
  for _, name in ipairs(chain) do
    if name == record.key then
      return 'LOOP the trigger would start itself again: ' .. args.printable(table.concat(chain, ' -> '), 512) .. ' -> ' .. args.printable(name)
    end
  end
end

-- The words of a trigger as templates, compiled once. By its record, not in it: that is JSON, which others may have written.
local templates_of

local function firing_words(record)
  templates_of = templates_of or setmetatable({}, { __mode = 'k' }) -- which libraries have only once they are loaded
  local list = templates_of[record]
  if not list then
    list = {}
    for n, text in ipairs(record.run) do
      local parts, problem = templates.compile(text)
      if not parts then
        raise('BADARG', problem)
      end
      list[n] = templates.varies(parts) and parts or (parts[1] or '')
    end
    templates_of[record] = list
  end
  return list
end

local function firing_names(vars)
  local names = {}
  for name in pairs(vars) do
    names[#names + 1] = args.printable(name)
  end
  table.sort(names)
  return table.concat(names, ', ', 1, math.min(#names, 20))
end

local function firing_argv(record, vars)
  local argv = {}
  for n, parts in ipairs(firing_words(record)) do
    if type(parts) == 'table' then
      local text, missing = templates.fill(parts, vars)
      if not text then
        raise('BADARG', 'the event has no {' .. args.printable(missing) .. '}, which ' .. args.printable(record.run[n]) .. ' needs; it has ' .. firing_names(vars))
      elseif string.sub(text, 1, 4) == 'ks:{' then
        raise('BADARG', "the event names '" .. args.printable(text) .. "': what begins with ks:{ is Keyside's own")
      end
      argv[n] = text
    else
      argv[n] = parts
    end
  end
  return argv
end

-- Call what(key, mode, word) for each key that a request touches; mode SET for outputs, GATHER with its word for features.
function firing.each_key(request, what)
  for _, input in ipairs(request.inputs) do
    local data = input.data
    if input.mode == 'GATHER' then
      for n = data.key, data.key + data.keys - 1 do
        what(data.argv[n], 'GATHER', data.word)
      end
    elseif input.mode ~= 'VALUE' then
      what(data, input.mode)
    end
  end
  for _, key in ipairs(request.outputs or {}) do
    what(key, 'SET')
  end
end

-- All that belongs to an event is done by one node in one step, wherever slots move meanwhile.
local function firing_slots(record, source, request)
  local place = triggers.place(record) or source
  firing.each_key(request, function(key)
    if not keys.together(place, key) then
      raise('CROSSSLOT', "key '" .. args.printable(key) .. "' is not in the slot of '" .. args.printable(place) .. "': give both the same hash tag")
    end
  end)
end

-- Submit the run. Returns the id of the job, and the request.
local function firing_enter(own, record, vars, source, chain)
  local request = predict.parse({}, firing_argv(record, vars), 1, true)
  if request.ticket or request.client or request.user then
    raise('BADARG', 'what a trigger runs takes no TICKET, ID or USER')
  end
  if own.clustered then
    firing_slots(record, source, request)
  end
  request.ticket = own.event .. record.key
  request.corr = cjson.encode({ source, unpack(chain) })
  request.extra = { e = { record.key, source, unpack(chain) } }
  local id = submit.run(request)
  return id, request
end

-- Take a job back that has not ended. Returns whether it was there.
local function firing_back(own, record, id)
  local word, entry = string.match(id, '^(.+)/(%d+%-%d+)$')
  if not word or not jobs.is_queue(word) then
    return false
  end
  local queue, stream, device = node.queue(word)
  redis.pcall('ZREM', own.inflight .. record.key, id)
  return (jobs.take_back(queue, stream, device, entry))
end

-- What coalesces: events of one key, of one member, or all of a channel.
local function firing_lane(record, source)
  return record.on == 'publish' and '' or source
end

-- The runs of one lane that have not ended, as `job deadline`, the older one first: at most two. It goes on, so that there are
-- results at all; the newer one is taken back for the sake of the next.
local function firing_live(own, record, source, now)
  local live = {}
  for job, ends in string.gmatch(redis.call('HGET', own.latest .. record.key, firing_lane(record, source)) or '', '(%S+) (%d+)') do
    if tonumber(ends) + jobs.REPLY_GRACE_MS > now then
      live[#live + 1] = job .. ' ' .. ends
    end
  end
  return live
end

-- Let a key live at least until then.
function firing.keep(name, ms)
  ms = ('%.0f'):format(ms)
  if redis.call('PTTL', name) < 0 then
    redis.call('PEXPIREAT', name, ms)
  else
    redis.call('PEXPIREAT', name, ms, 'GT')
  end
end

-- The rate: as lib rates, but that nobody is told when to come again. Returns the name of the counter, whether it is to be made,
-- and the milliseconds to wait if it is used up.
local function firing_rate(own, record)
  local name = own.rate .. record.uid
  local taken = redis.call('GET', name)
  if (tonumber(taken or 0) or record.rate[1]) < record.rate[1] then
    return name, not taken
  end
  local left = redis.call('PTTL', name)
  if left < 0 then
    redis.call('UNLINK', name) -- not made here: it would stay for ever
    return name, true
  end
  return name, false, left + 1
end

local function firing_under_way(own, record, now)
  local name = own.inflight .. record.key
  redis.call('ZREMRANGEBYSCORE', name, '-inf', ('%.0f'):format(now))
  return redis.call('ZCARD', name)
end

-- Start the run of an event. Returns FIRED and the job; DROPPED or WAIT, for streams, whose entries are not lost, and why, or for how
-- long; REFUSED and the text of an error that may pass; or ERROR and one that will not. Nothing has been counted but FIRED.
-- `later`: what is only to be done once all triggers of a call have started is put there. Until then firing.undo takes a start back.
function firing.start(own, record, vars, source, chain, later)
  local waits = record.on == 'stream'
  if record.state ~= 'active' then
    return waits and 'WAIT' or 'DROPPED', waits and PAUSED_WAIT_MS or 'PAUSED'
  end
  local loop = firing_loop(record, chain)
  if loop then
    return 'ERROR', loop
  end
  local now = node.now_ms()
  local rate, fresh, left
  if record.rate then
    rate, fresh, left = firing_rate(own, record)
    if left then
      return waits and 'WAIT' or 'DROPPED', waits and left or 'RATE'
    end
  end
  local live = record.coalesce and firing_live(own, record, source, now)
  if record.inflight and firing_under_way(own, record, now) >= record.inflight and not (live and live[2]) then
    return waits and 'WAIT' or 'DROPPED', waits and ROOM_WAIT_MS or 'INFLIGHT'
  end
  local ok, id, request = pcall(firing_enter, own, record, vars, source, chain)
  if not ok then
    local text = raised_text(id)
    return FIRING_REFUSALS[string.match(text, '^%u+')] and 'REFUSED' or 'ERROR', text
  end
  local deadline = request.deadline
  local ends = deadline + jobs.REPLY_GRACE_MS
  redis.call('ZADD', own.inflight .. record.key, ('%.0f'):format(ends), id)
  firing.keep(own.inflight .. record.key, ends)
  later[#later + 1] = function()
    if rate then
      redis.call('INCR', rate)
      if fresh then
        redis.call('PEXPIRE', rate, ('%.0f'):format(record.rate[2]))
      end
    end
    if live then
      local back = live[2] and string.match(live[2], '^%S+')
      live[live[1] and 2 or 1] = id .. ' ' .. ('%.0f'):format(deadline)
      redis.call('HSET', own.latest .. record.key, firing_lane(record, source), table.concat(live, ' '))
      firing.keep(own.latest .. record.key, ends)
      if back and firing_back(own, record, back) then
        events.count(own, record.key, 'coalesced')
      end
    end
    events.count(own, record.key, 'fired')
  end
  return 'FIRED', id, deadline
end

function firing.settle(later)
  for _, step in ipairs(later) do
    step()
  end
end

-- As if a start had not been: nobody else has seen it, since a function is atomic.
function firing.undo(own, record, id)
  firing_back(own, record, id)
end
