--- @requires guard args keys node triggers templates patterns catalog
-- The ends of runs that triggers have started. Their ticket ks:{N}:ev:<trigger> is no key: what is said on it is counted,
-- published, kept in a stream, and so on. `corr` of such a job is JSON: [source of the event, names of the triggers before...].

local events = {}

local EVENT_ERROR_BYTES = 1024 -- of a text that is kept

-- Sequences of bytes that UTF-8 is made of, besides ASCII.
local UTF8_FORMS = {
  '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]', '\237[\128-\159][\128-\191]',
  '\240[\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
}

local function event_hex(letter)
  return ('\\x%02x'):format(string.byte(letter))
end

-- A string of JSON; of bytes that are no UTF-8 those above ASCII are written out.
local function event_json(text)
  if string.find(text, '[\128-\255]') then
    local rest = text
    for _, form in ipairs(UTF8_FORMS) do
      rest = string.gsub(rest, form, 'x')
    end
    if string.find(rest, '[\128-\255]') then
      text = string.gsub(text, '[\128-\255]', event_hex)
    end
  end
  return (string.gsub(cjson.encode(text), '\\/', '/'))
end

-- The result of an event as executors do not make it; run: empty where none was started.
local function event_result(record, run, source, ending)
  return '{"trigger":' .. event_json(record.key) .. ',"run":' .. event_json(run) .. ',"source":' .. event_json(source)
    .. ',"target":' .. event_json(record.run[1]) .. ending .. '}'
end

local function event_failure(record, run, source, text)
  return event_result(record, run, source, ',"error":' .. event_json(text))
end

function events.count(own, name, field, amount)
  -- Counters that somebody spoilt are no reason to fail.
  redis.pcall('HINCRBY', own.tstats .. name, field, amount or 1)
end

-- Let a trigger rest. Where its key is on another node, it rests on this one.
function events.pause(own, record)
  local name = record.key
  local found = redis.pcall('HGET', name, 'state')
  if found == 'active' and triggers.encode(name) then
    redis.call('HSET', name, 'state', 'paused')
    catalog.update_trigger(own, name)
  elseif type(found) == 'table' and string.find(found.err, 'non local', 1, true) then
    local raw = redis.call('HGET', own.triggers, name)
    triggers.keep(own, name, (string.gsub(raw, '"state":"active"', '"state":"paused"', 1)))
  end
end

-- The stream that results of an event go to; nil: none.
local function event_stream(record, source)
  if not record.results then
    return nil
  end
  local parts = record.results_parts
  if not parts then
    parts = templates.compile(record.results) or {}
    record.results_parts = parts
  end
  return templates.fill(parts, record.on == 'set' and events.captures(record, source) or {})
end

-- The variables that a key gives a trigger ON SET; nil if its pattern is not that of the key.
function events.captures(record, key)
  local pattern = record.pattern
  if pattern == nil then
    pattern = patterns.compile(record.source) or false
    record.pattern = pattern
  end
  return pattern and patterns.match(pattern, key)
end

-- Tell the result of an event: to subscribers, to the stream of results, to the counters. `problem`: the error in it, if any.
function events.tell(own, record, run, source, result, problem)
  local name, now = record.key, ('%.0f'):format(node.now_ms())
  if problem then
    events.count(own, name, 'errors')
    redis.pcall('HSET', own.tstats .. name, 'last_error', string.sub(problem, 1, EVENT_ERROR_BYTES), 'last_error_ms', now, 'last_ms', now)
  else
    events.count(own, name, 'done')
    redis.pcall('HSET', own.tstats .. name, 'last_ms', now)
  end
  if problem and record.onerror == 'drop' then
    return
  end
  redis.pcall('PUBLISH', record.channel, result)
  local stream = event_stream(record, source)
  if stream then
    local words = { '*', 'source', source, 'run', run, 'result', result }
    if record.maxlen then
      words = { 'MAXLEN', ('%.0f'):format(record.maxlen), unpack(words) }
    end
    local added = redis.pcall('XADD', stream, unpack(words))
    if type(added) == 'table' and added.err then
      redis.pcall('HSET', own.tstats .. name, 'last_error', "results stream '" .. args.printable(stream) .. "': " .. raised_text(added),
        'last_error_ms', now)
    end
  end
  if problem and record.onerror == 'pause' then
    pcall(events.pause, own, record) -- who fired it by setting a tensor may not
  end
end

-- An entry of a stream has its result: the group need not know of it any more.
function events.acknowledge(record, source)
  redis.pcall('HDEL', keys.fired(record.source, record.key), source)
  redis.pcall('XACK', record.source, record.group, source)
end

-- An event could not start a run, and never will. Its error is told; `text` begins with a code.
function events.failed(own, record, source, text)
  events.tell(own, record, '', source, event_failure(record, '', source, text), text)
  if record.on == 'stream' then
    events.acknowledge(record, source)
  end
end

-- Whether a run is the one that was started for an entry of a stream. Its mark is gone, or another's, where it is too late:
-- then the entry has its result, or will have it from a later run. Nor may the stream have gone to another node.
local function event_is_current(record, source, deadline)
  local mark = redis.pcall('HGET', keys.fired(record.source, record.key), source)
  return type(mark) == 'string' and string.match(mark, ' (%d+)$') == ('%.0f'):format(deadline)
end

-- What of a run was kept under the tag that it was submitted under, which may be on another node by now.
local function event_forget(tag, name, source, run)
  local of = keys.of_node(tag)
  redis.pcall('ZREM', of.inflight .. name, run)
  local live = redis.pcall('HGET', of.latest .. name, source)
  if type(live) == 'string' then
    local left = {}
    for id, deadline in string.gmatch(live, '(%S+) (%d+)') do
      if id ~= run then
        left[#left + 1] = id .. ' ' .. deadline
      end
    end
    if left[1] then
      redis.pcall('HSET', of.latest .. name, source, table.concat(left, ' '))
    else
      redis.pcall('HDEL', of.latest .. name, source)
    end
  end
end

-- The error in what an executor says of a run; nil if there is none.
local function event_error(text)
  if not string.find(text, '"error"', 1, true) then
    return nil
  end
  local ok, found = pcall(cjson.decode, text)
  return ok and type(found) == 'table' and type(found.error) == 'string' and found.error or nil
end

local function event_ended(tag, name, run, deadline, corr, text, outputs)
  local source = cjson.decode(corr)[1]
  event_forget(tag, name, source, run)
  local own = node.keys()
  local record = triggers.find(own, name)
  if not record or (record.on == 'stream' and not event_is_current(record, source, deadline)) then
    return
  end
  local problem
  if string.sub(text, 1, 1) == '{' then
    problem = event_error(text)
  elseif text == 'OK' then
    text = event_result(record, run, source, ',"outputs":{}')
  else
    problem = text
    text = event_failure(record, run, source, problem)
  end
  for _, key in ipairs(not problem and record.ttl and outputs or {}) do
    redis.pcall('PEXPIRE', key, ('%.0f'):format(record.ttl))
  end
  events.tell(own, record, run, source, text, problem)
  if record.on == 'stream' then
    events.acknowledge(record, source)
  end
end

-- A run has ended with `text`: JSON from an executor, else `CODE text`. `run`: id of the job; `outputs`: keys that it has
-- written. Returns false where the ticket is not that of an event.
function events.ended(run, deadline, ticket, corr, text, outputs)
  local tag, name = keys.of_event(ticket)
  if not tag then
    return false
  end
  -- The batch that the job is one of must not suffer from what somebody has spoilt.
  local ok, problem = pcall(event_ended, tag, name, run, deadline, corr, text, outputs)
  if not ok then
    redis.log(redis.LOG_WARNING, 'keyside: the result of a run of trigger ' .. args.printable(name) .. ' is lost: ' .. raised_text(problem))
  end
  return true
end

-- The names of the triggers that led to a job, the last one included, from its ticket and corr; empty where none did.
function events.chain(ticket, corr)
  local _, name = keys.of_event(ticket)
  if not name then
    return {}
  end
  local ok, list = pcall(cjson.decode, corr)
  local chain = {}
  for n = 2, ok and type(list) == 'table' and #list or 1 do
    chain[#chain + 1] = type(list[n]) == 'string' and list[n] or nil
  end
  chain[#chain + 1] = name
  return chain
end
