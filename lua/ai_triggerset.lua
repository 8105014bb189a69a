--- AI_TRIGGERSET: run a model whenever something happens: a message, a tensor that is set, an entry of a stream, or the time.
-- KEYS[1] key            the trigger; one that is there is replaced, and active again
-- ARGV[1..] arguments    ON (PUBLISH channel [SHARDED] | SET pattern [NOTIFY] | STREAM key [GROUP g] [FROM id]
--                        | SCHEDULE ms (KEYS n key... | MEMBERS key))
--                        [CHANNEL c] [RESULTS stream [MAXLEN n]] [COALESCE] [RATE n PER ms] [INFLIGHT n] [TTL ms]
--                        [ONERROR PUBLISH|PAUSE|DROP]
--                        RUN target INPUTS n spec... [NAMES n name...] [OUTPUTS n key...] [TIMEOUT ms] [PRIORITY p]
-- Returns: OK
-- Errors: BADARG WRONGTYPE CROSSSLOT NOPERM TOOBIG LOOP
-- Flags: allow-cross-slot-keys

-- Variables that all have one value.
local function triggerset_all(value)
  return setmetatable({}, {
    __index = function()
      return value
    end,
  })
end

-- A value that no pattern of an ACL matches but one that takes any: a variable may stand for anything.
local PROBE = '\127probe'
local MOST_MS = 2678400000 -- 31 days
local MOST_RUN_BYTES = 65536

local function triggerset_int(word, text, max)
  return args.int(text or '', 1, max)
    or raise('BADARG', word .. " takes a number from 1 to " .. ('%.0f'):format(max) .. ", got '" .. args.printable(text or '') .. "'")
end

local function triggerset_text(word, text, most)
  if not text or text == '' or #text > (most or 512) then
    raise('BADARG', word .. ' takes a name of 1 to ' .. (most or 512) .. ' bytes')
  end
  return text
end

-- The words that may follow each kind of source, or all of them, up to RUN. Each reads what is behind it, and returns the position
-- of the next word.
local WORDS = {
  SHARDED = function(spec, _, i)
    spec.sharded = true
    return i
  end,
  NOTIFY = function(spec, _, i)
    spec.notify = true
    return i
  end,
  GROUP = function(spec, argv, i)
    spec.group = triggerset_text('GROUP', argv[i])
    return i + 1
  end,
  FROM = function(spec, argv, i)
    local id = argv[i] or ''
    if id ~= '$' and (#id > 41 or not string.find(id, '^%d+%-?%d*$')) then
      raise('BADARG', "FROM takes the id of an entry, 0 for the first, or $, got '" .. args.printable(id) .. "'")
    end
    spec.from = id
    return i + 1
  end,
  MEMBERS = function(spec, argv, i)
    spec.members = triggerset_text('MEMBERS', argv[i], 4096)
    return i + 1
  end,
  KEYS = function(spec, argv, i)
    local count = triggerset_int('KEYS', argv[i], 1000)
    spec.keys = {}
    for n = 1, count do
      spec.keys[n] = argv[i + n] or raise('BADARG', 'KEYS ' .. count .. ': only ' .. (n - 1) .. ' keys follow')
    end
    return i + count + 1
  end,
  CHANNEL = function(spec, argv, i)
    spec.channel = triggerset_text('CHANNEL', argv[i])
    return i + 1
  end,
  RESULTS = function(spec, argv, i)
    spec.results = triggerset_text('RESULTS', argv[i], 4096)
    return i + 1
  end,
  MAXLEN = function(spec, argv, i)
    spec.maxlen = triggerset_int('MAXLEN', argv[i], 1000000000)
    return i + 1
  end,
  COALESCE = function(spec, _, i)
    spec.coalesce = true
    return i
  end,
  RATE = function(spec, argv, i)
    if args.keyword(argv[i + 1] or '') ~= 'PER' then
      raise('BADARG', 'RATE takes: n PER ms')
    end
    spec.rate = { triggerset_int('RATE', argv[i], 1000000), triggerset_int('PER', argv[i + 2], MOST_MS) }
    return i + 3
  end,
  INFLIGHT = function(spec, argv, i)
    spec.inflight = triggerset_int('INFLIGHT', argv[i], 100000)
    return i + 1
  end,
  TTL = function(spec, argv, i)
    spec.ttl = triggerset_int('TTL', argv[i], MOST_MS)
    return i + 1
  end,
  ONERROR = function(spec, argv, i)
    local word = args.keyword(argv[i] or '')
    if word ~= 'PUBLISH' and word ~= 'PAUSE' and word ~= 'DROP' then
      raise('BADARG', 'ONERROR is PUBLISH, PAUSE or DROP')
    end
    spec.onerror = string.lower(word)
    return i + 1
  end,
}
local ONLY = { SHARDED = 'publish', NOTIFY = 'set', GROUP = 'stream', FROM = 'stream', MEMBERS = 'schedule', KEYS = 'schedule' }

local function triggerset_source(spec, argv)
  local word = args.keyword(argv[2] or '')
  if word == 'SCHEDULE' then
    spec.on, spec.source = 'schedule', ''
    spec.every = triggerset_int('SCHEDULE', argv[3], MOST_MS)
  elseif word == 'PUBLISH' or word == 'SET' or word == 'STREAM' then
    spec.on, spec.source = string.lower(word), triggerset_text('ON ' .. word, argv[3], 4096)
  else
    raise('BADARG', 'ON takes PUBLISH channel, SET pattern, STREAM key or SCHEDULE ms')
  end
end

local function triggerset_parse(key, argv)
  if args.keyword(argv[1] or '') ~= 'ON' then
    raise('BADARG', 'AI_TRIGGERSET takes: ON (PUBLISH channel | SET pattern | STREAM key | SCHEDULE ms ...) [options] RUN target INPUTS n spec...')
  end
  local spec = { channel = keys.results(key), group = 'ks' .. key, from = '$', onerror = 'publish' }
  triggerset_source(spec, argv)
  local i, seen = 4, {}
  while args.keyword(argv[i] or 'RUN') ~= 'RUN' do
    local word = args.keyword(argv[i])
    local read = WORDS[word]
    if not read or seen[word] or (ONLY[word] and ONLY[word] ~= spec.on) then
      raise('BADARG', "Unexpected argument: '" .. args.printable(argv[i]) .. "'")
    end
    seen[word] = true
    i = read(spec, argv, i + 1)
  end
  if not argv[i] then
    raise('BADARG', 'RUN is missing, with what the trigger is to run behind it: RUN target INPUTS n spec...')
  end
  spec.run = {}
  for n = i + 1, #argv do
    spec.run[n - i] = argv[n]
  end
  return spec
end

local function triggerset_check(spec)
  if spec.on == 'schedule' and (not spec.keys) == (not spec.members) then
    raise('BADARG', 'ON SCHEDULE takes the members either by KEYS n key... or by MEMBERS key, a set, list or sorted set of them')
  elseif spec.maxlen and not spec.results then
    raise('BADARG', 'MAXLEN goes with RESULTS')
  elseif spec.coalesce and spec.on == 'stream' then
    raise('BADARG', 'ON STREAM gives a result for each entry: COALESCE would leave some out')
  end
end

-- Which variables there may be; nil: any.
local function triggerset_known(spec)
  if spec.on == 'set' then
    local pattern, problem = patterns.compile(spec.source)
    if not pattern then
      raise('BADARG', problem)
    end
    local known = { key = '1' }
    for _, part in ipairs(pattern) do
      if type(part) == 'table' then
        known[part[1]] = '1'
      end
    end
    return known, pattern
  elseif spec.on == 'schedule' then
    return { member = '1', due = '1' }
  end
end

-- A template, its text for `vars`, and whether it has variables; with the ones that cannot be known refused.
local function triggerset_template(text, known)
  local parts, problem = templates.compile(text)
  if not parts then
    raise('BADARG', problem)
  end
  local _, missing = templates.fill(parts, known or triggerset_all('1'))
  if missing then
    raise('BADARG', "'" .. args.printable(text) .. "' uses {" .. args.printable(missing) .. '}, which this trigger does not have: write {{ for the character itself')
  end
  return parts
end

local function triggerset_filled(list, vars)
  local filled = {}
  for n, parts in ipairs(list) do
    filled[n] = templates.fill(parts, vars)
  end
  return filled
end

local function triggerset_request(list, vars)
  local argv = triggerset_filled(list, vars)
  local request = predict.parse({}, argv, 1, true)
  if request.ticket or request.client or request.user then
    raise('BADARG', 'what a trigger runs takes no TICKET, ID or USER')
  end
  return request
end

local function triggerset_may(allowed, what)
  if not allowed then
    raise('NOPERM', 'this user may not set a trigger that may ' .. what .. ': executors do it on its behalf')
  end
end

-- Executors may do more than who sets the trigger: it must be allowed what it may make them do, for any value of a variable.
local function triggerset_rights(spec, list)
  local ok, request = pcall(triggerset_request, list, triggerset_all(PROBE))
  if not ok then
    request = triggerset_request(list, triggerset_all('1')) -- a variable stands for a number
  end
  local name = string.match(request.target, '^[^@]*')
  triggerset_may(redis.acl_check_cmd('HGET', name, 'type'), "use model '" .. args.printable(name) .. "'")
  firing.each_key(request, function(key, mode, word)
    local shown = "key '" .. args.printable(key) .. "'"
    if mode == 'SET' then
      triggerset_may(redis.acl_check_cmd('SET', key, ''), 'SET ' .. shown)
    elseif word == 'HASH' then
      triggerset_may(redis.acl_check_cmd('HMGET', key, 'f'), 'read ' .. shown)
    elseif word == 'LIST' then
      triggerset_may(redis.acl_check_cmd('LRANGE', key, '0', '0'), 'read ' .. shown)
    elseif word == 'ZSET' then
      triggerset_may(redis.acl_check_cmd('ZRANGE', key, '0', '0'), 'read ' .. shown)
    else
      triggerset_may(redis.acl_check_cmd('GETRANGE', key, '0', '0'), 'read ' .. shown)
      triggerset_may(mode ~= 'OWN' or redis.acl_check_cmd('UNLINK', key), 'take away ' .. shown)
    end
  end)
  triggerset_may(redis.acl_check_cmd('PUBLISH', spec.channel, ''), "publish on channel '" .. args.printable(spec.channel) .. "'")
  if spec.results then
    local key = templates.fill(triggerset_template(spec.results), triggerset_all(PROBE))
    triggerset_may(redis.acl_check_cmd('XADD', key, '*', 'a', 'b'), "add to stream '" .. args.printable(key) .. "'")
  end
  if spec.members then
    local may = redis.acl_check_cmd('SSCAN', spec.members, '0') and redis.acl_check_cmd('LRANGE', spec.members, '0', '-1')
    triggerset_may(may, "list the members of key '" .. args.printable(spec.members) .. "'")
  elseif spec.on == 'publish' then
    local may = redis.acl_check_cmd(spec.sharded and 'SSUBSCRIBE' or 'SUBSCRIBE', spec.source)
    triggerset_may(may, "listen to channel '" .. args.printable(spec.source) .. "'")
  elseif spec.on == 'stream' then
    triggerset_may(redis.acl_check_cmd('XRANGE', spec.source, '-', '+'), "read stream '" .. args.printable(spec.source) .. "'")
  end
end

-- On a cluster one node does all that belongs to an event, in one step.
local function triggerset_slots(spec, request)
  local place = triggers.place(spec)
  if not place then
    return
  end
  local function together(key)
    if not keys.together(place, key) then
      raise('CROSSSLOT', "'" .. args.printable(key) .. "' is not in the slot of '" .. args.printable(place)
        .. "': give both the same hash tag (written {{tag}} in what is run), since one node serves the trigger")
    end
  end
  for _, key in ipairs(spec.keys or {}) do
    together(key)
  end
  if spec.results then
    together((templates.fill(triggerset_template(spec.results, {}), {}))) -- braces in it are doubled
  end
  for _, key in ipairs(request.outputs or {}) do
    if not string.find(key, '1', 1, true) then
      together(key)
    end
  end
end

-- Outputs that may match the own pattern. (What looks like OUTPUTS and is not is looked at too: that can only be too strict.)
local function triggerset_loops(spec, list, pattern, count)
  for at = 4, #list - count do
    if args.keyword(spec.run[at - 1]) == 'OUTPUTS' and args.int(spec.run[at]) == count then
      for n = at + 1, at + count do
        if patterns.may_match(pattern, list[n]) then
          raise('LOOP', "output '" .. args.printable(spec.run[n]) .. "' may match the pattern '" .. args.printable(spec.source)
            .. "': the trigger would start itself without end")
        end
      end
    end
  end
end

local function triggerset_run(spec, own)
  local bytes = 0
  for _, text in ipairs(spec.run) do
    bytes = bytes + #text
  end
  if bytes > MOST_RUN_BYTES then
    raise('TOOBIG', 'what is behind RUN has ' .. bytes .. ' bytes, ' .. MOST_RUN_BYTES .. ' are the most: SET values to keys and name those')
  end
  local known, pattern = triggerset_known(spec)
  local list = {}
  for n, text in ipairs(spec.run) do
    list[n] = triggerset_template(text, known)
  end
  local request = triggerset_request(list, triggerset_all('1'))
  if request.owns and spec.on == 'set' then
    raise('BADARG', 'OWN would take away a tensor that other triggers may need: name it with KEY or REF')
  end
  if spec.results then
    local parts = triggerset_template(spec.results, spec.on == 'set' and known or {})
    if spec.on == 'set' and own.clustered and not templates.varies(parts) then
      raise('CROSSSLOT', 'on a cluster RESULTS of a trigger ON SET takes a template that puts the stream in the slot of the key, such as results:{key}')
    end
  end
  triggerset_rights(spec, list)
  if own.clustered then
    triggerset_slots(spec, request)
  end
  if pattern and request.outputs then
    triggerset_loops(spec, list, pattern, #request.outputs)
  end
end

local function AI_TRIGGERSET(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TRIGGERSET': give the trigger's name as the one key")
  end
  if key == '' or #key > 512 or string.find(key, '@', 1, true) or string.sub(key, 1, 4) == 'ks:{' then
    raise('BADARG', 'the name of a trigger has 1 to 512 bytes, no @, and does not begin with ks:{')
  end
  local own = node.keys()
  local spec = triggerset_parse(key, ARGV)
  triggerset_check(spec)
  triggerset_run(spec, own)
  local uid = triggers.uid(key)
  if spec.on == 'set' and redis.call('HEXISTS', own.onset, key) == 0 and redis.call('HLEN', own.onset) > triggers.MAX_ONSET then
    raise('TOOBIG', 'there are ' .. triggers.MAX_ONSET .. ' triggers ON SET, the most there may be: each write of a tensor looks at all of them')
  end
  spec.created = node.now_ms()
  if not uid then
    catalog.forget(own, key) -- what went by a plain DEL has left its record
    uid = node.unique()
    redis.call('HSET', key, 'type', 'trigger', 'uid', uid)
  end
  local text = cjson.encode(spec)
  redis.call('HSET', key, 'state', 'active', 'spec', text)
  triggers.vouch(key, uid, text)
  catalog.update_trigger(own, key)
  return redis.status_reply('OK')
end
