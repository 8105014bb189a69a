--- @requires guard args keys node catalog jobs inputs options seen room rates counted
-- From a parsed request to an entry in the job stream. Everything is checked before anything is written.

local submit = {}

local GRAPH_DEPTH = 8 -- graphs within each other
local MEMBERS_KEPT = 100 -- of a graph

-- The end of the header of an entry whose inputs all ride in it and whose outputs ride in the reply: as nearly all do.
local plain_ends = {}

local function shown(specs)
  if not specs then
    return 'not known before it runs'
  end
  local words = {}
  for n, spec in ipairs(specs) do
    local shape = spec.shape and '[' .. table.concat(spec.shape, ',') .. ']' or ''
    words[n] = "'" .. spec.name .. "' " .. spec.dtype .. shape
  end
  return table.concat(words, ', ')
end

local function quoted(names)
  local words = {}
  for n, name in ipairs(names) do
    words[n] = "'" .. args.printable(name) .. "'"
  end
  return table.concat(words, ', ')
end

-- Inputs in the order of the signature, whatever the order in which they were named.
local function bind(record, request, signature)
  local list, names = request.inputs, request.names
  if #list ~= #signature.inputs then
    raise('BADINPUT', "model '" .. record.title .. "' takes " .. #signature.inputs .. ' inputs, ' .. shown(signature.inputs) .. '; got ' .. #list)
  end
  if not names then
    return list
  end
  local ordered = {}
  for n, name in ipairs(names) do
    local position = signature.position[name]
    if not position or ordered[position] then
      raise('BADINPUT', "model '" .. record.title .. "' takes " .. shown(signature.inputs) .. '; got ' .. quoted(names))
    end
    ordered[position] = list[n]
  end
  request.names = nil
  return ordered
end

-- The outputs can be written, by this caller and as they are now.
function submit.check_outputs(record, outputs)
  local known = record.signature and record.signature.outputs
  if known and #known ~= #outputs then
    raise('BADINPUT', "model '" .. record.title .. "' gives " .. #known .. ' outputs, ' .. shown(known) .. '; got ' .. #outputs .. ' output keys')
  end
  for _, key in ipairs(outputs) do
    -- It will be written by an executor, which may do more than the caller.
    if not redis.acl_check_cmd('SET', key, '') then
      raise('NOPERM', "this user may not SET output key '" .. args.printable(key) .. "'")
    end
    local problem = inputs.writable(key)
    if problem then
      error({ err = problem }, 0)
    end
  end
end

-- The rest of the array that record.head begins: several values packed in one call stand one after the other. A mark is one
-- element more.
local function header_of(record, request, deadline, ticket, modes, count, bytes, mark)
  if mark then
    return '\157' .. string.sub(header_of(record, request, deadline, ticket, modes, count, bytes), 2) .. cmsgpack.pack(mark)
  end
  local front = record.head .. cmsgpack.pack(deadline, ticket, request.corr or '')
  if modes or request.names or request.outputs or bytes > 0 then
    if not modes then
      modes = {}
      for n = 1, count do
        modes[n] = 'v'
      end
    end
    return front .. cmsgpack.pack(modes, request.names or {}, request.outputs or {}, bytes)
  end
  local plain = plain_ends[count]
  if not plain then
    modes = {}
    for n = 1, count do
      modes[n] = 'v'
    end
    plain = cmsgpack.pack(modes, {}, {}, 0)
    plain_ends[count] = plain
  end
  return front .. plain
end

-- What a graph runs, with what is run by the graphs in it: {target, id, key, version} of each, as the catalog says now. Its caller
-- must be allowed to use all of them.
local function add_members(own, record, members, path)
  for _, target in ipairs(record.uses or {}) do
    local member = members[target] or catalog.find(own, target)
    if path[member.id] then
      raise('BADMODEL', "graph '" .. path[1] .. "' runs itself: " .. table.concat(path, ' -> ') .. ' -> ' .. member.title)
    elseif not members[target] then
      submit.check_use(member)
      members[target] = member
      members[#members + 1] = { target, member.id, member.key, member.version }
      if member.uses then
        if #path >= GRAPH_DEPTH then
          raise('BADMODEL', "graph '" .. path[1] .. "' has more than " .. GRAPH_DEPTH .. ' graphs within each other: ' .. table.concat(path, ' -> '))
        end
        path[member.id] = true
        path[#path + 1] = member.title
        add_members(own, member, members, path)
        path[#path] = nil
        path[member.id] = nil
      end
    end
  end
  return members
end

-- The members of a graph or DAG as the field `m` of what goes along with its job.
function submit.members(own, record)
  local list = {}
  local found = add_members(own, record, {}, { [record.id] = true, record.title })
  for n, member in ipairs(found) do
    list[n] = member
  end
  return list, found
end

-- What graphs run, by their records. Not in them: they are JSON, which others may have written.
local members_of

-- Whether the catalog still says of all members what it said before; then this caller must be allowed to use them, too.
local function same_members(own, known)
  for n, raw in ipairs(redis.call('HMGET', own.catalog, unpack(known.targets))) do
    if raw ~= known.raws[n] then
      return false
    end
  end
  for _, member in ipairs(known.records) do
    submit.check_use(member)
  end
  return true
end

-- The members of a graph, also packed as all that goes along with its job. Kept while none of them changes.
local function known_members(own, record)
  members_of = members_of or setmetatable({}, { __mode = 'k' }) -- which libraries have only once they are loaded
  local known = members_of[record]
  if known and same_members(own, known) then
    return known
  end
  local list, found = submit.members(own, record)
  known = { list = list, packed = cmsgpack.pack({ m = list }), targets = {}, records = {} }
  for n, member in ipairs(list) do
    known.targets[n], known.records[n] = member[1], found[member[1]]
  end
  if list[1] and #list <= MEMBERS_KEPT then
    known.raws = redis.call('HMGET', own.catalog, unpack(known.targets))
    members_of[record] = known
  end
  return known
end

-- A target that did not fail, and that this caller may use.
function submit.check_use(record)
  if record.state == 'failed' then
    raise('MODELFAILED', "model '" .. record.title .. "' failed to load: " .. record.reason)
  end
  if not redis.acl_check_cmd('HGET', record.key, 'type') then
    raise('NOPERM', "this user may not use model '" .. record.title .. "'")
  end
end

-- Put a job into its queue. `entry`: { 'h', '', its inline inputs... }; `modes`: how each of its `count` inputs is found,
-- nil where all are inline; `mark`: of room.check. Returns the id of the entry.
function submit.enter(own, device, record, request, deadline, ticket, entry, modes, count, bytes, mark)
  entry[2] = header_of(record, request, deadline, ticket, modes, count, bytes, mark)
  local extra = request.extra
  if extra then
    entry[#entry + 1], entry[#entry + 2] = 'x', type(extra) == 'string' and extra or cmsgpack.pack(extra)
  end
  local stream = own.jobs .. device
  local first = request.priority and redis.call('EXISTS', stream) == 0
  local id = jobs.add(stream, entry)
  if bytes > 0 then
    redis.call('INCRBY', own.bytes .. device, bytes)
  end
  if mark then
    counted.add(counted.name(own, record.uid, device), mark, deadline + jobs.REPLY_GRACE_MS)
  end
  if (bytes > 0 or mark) and not jobs.may_read(stream) then
    local held = ('%.0f'):format(bytes) .. (mark and ' ' .. ('%.0f'):format(mark) .. ' ' .. record.uid or '')
    redis.call('SET', own.held .. device .. '/' .. id, held, 'PX', request.timeout + jobs.REPLY_GRACE_MS)
  end
  if first then
    jobs.add_look(own, record) -- executors wait on the queues that they know
  end
  return id
end

-- What is no plain model: a script needs the name of its function, a graph goes with what it runs.
function submit.check_kind(own, record, request)
  local extra = request.extra or {}
  if record.kind == 'script' and not extra.f then
    raise('BADARG', "'" .. record.title .. "' is a script: call it with AI_SCRIPTEXECUTE, which takes the name of its function")
  elseif record.kind ~= 'script' and extra.f then
    raise('BADARG', "'" .. record.title .. "' is no script: call it with AI_PREDICT or AI_MODELEXECUTE")
  elseif extra.f and record.functions then
    local found = false
    for _, name in ipairs(record.functions) do
      found = found or name == extra.f
    end
    if not found then
      raise('BADARG', 'Function ' .. args.printable(extra.f) .. " does not exist in the given script: '" .. record.title .. "' has "
        .. args.printable(table.concat(record.functions, ', '), 500))
    end
  end
  if record.uses then
    local known = known_members(own, record)
    if request.extra then
      extra.m = known.list
    else
      request.extra = known.packed
    end
  end
end

-- request: target, inputs {{mode, data, value, size}...}, owns (is an input OWN?), names, outputs, timeout, ticket, corr,
-- client, seq, user, priority (!H or !L), extra (the field x of the entry: a table, or packed), record (in place of that which the
-- catalog has of the target). Returns what the public function returns.
function submit.run(request)
  local own = node.keys()
  request.timeout = request.timeout or 30000
  if request.client and seen.taken(own, request) then
    return ''
  end
  if request.owns then
    inputs.own_once(request.inputs)
  end
  local record = request.record or catalog.find(own, request.target)
  if not request.record then
    submit.check_use(record)
    if record.kind or request.extra then
      submit.check_kind(own, record, request)
    end
  end
  local signature = record.kind ~= 'script' and record.signature
  local list = signature and bind(record, request, signature) or request.inputs
  local specs, bytes = signature and signature.inputs, 0
  for n = 1, #list do
    local input = list[n]
    inputs.look(record, specs and specs[n], input)
    bytes = bytes + input.size
  end
  if request.outputs then
    submit.check_outputs(record, request.outputs)
  end
  local device, size = record.device, bytes
  if request.priority then
    device = device .. request.priority
  end
  if bytes <= jobs.COUNTED_BYTES then
    bytes = 0
  end
  local now = node.now_ms()
  local limits = room.limits(own, now)
  local mark = room.check(own, limits, device, record, bytes, size, now)
  local permits = (limits.rated or record.limits) and rates.check(own, limits, record, request)
  local ticket = request.ticket or ''
  if own.clustered and ticket ~= '' and not keys.of_event(ticket) then
    redis.call('EXISTS', ticket)
  end
  local deadline = now + request.timeout
  request.deadline = deadline
  local entry = { 'h', '' }
  local modes = inputs.capture(entry, list, deadline + jobs.REPLY_GRACE_MS, request.owns)
  local id = submit.enter(own, device, record, request, deadline, ticket, entry, modes, #list, bytes, mark)
  if permits then
    rates.take(permits)
  end
  if request.client then
    seen.take(own, request)
  end
  if ticket ~= '' then
    return node.word(own, device) .. '/' .. id
  end
  return own.ticket .. device .. '/' .. id
end

-- Run a public function that submits. Should it refuse, the reason also goes to the ticket that the caller chose: whoever
-- sent FCALL and BLPOP in one write would otherwise wait there in vain.
function submit.answered(callback, KEYS, argv)
  local ok, reply = pcall(callback, KEYS, argv)
  if ok then
    return reply
  end
  local problem = raised_text(reply)
  local ticket, corr = options.ticket(argv)
  if ticket then
    jobs.push(ticket, corr, problem, node.now_ms() + jobs.REPLY_GRACE_MS)
  end
  return redis.error_reply(problem)
end
