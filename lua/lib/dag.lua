--- @requires guard args node catalog inputs options seen submit npy tensorset
-- AI_DAGEXECUTE: from its words to a job that runs all operations at once (executor/dag.py runs what is made here).

local dag = {
  MAX_OPERATIONS = 1000,
  INLINE = 32768, -- data of a TENSORSET up to this rides in the entry
  HEAD = { LOAD = true, PERSIST = true, ROUTING = true, TIMEOUT = true, TICKET = true, ID = true, USER = true, PRIORITY = true },
  SOURCES = { VALUE = true, KEY = true, OWN = true, REF = true },
  DEPRECATED = { MODELRUN = true, SCRIPTRUN = true, DAGRUN = true },
}

-- Where the operation that has words from i on ends: the position of the next |>, or that behind the last word.
function dag.stop(argv, i)
  while argv[i] and argv[i] ~= '|>' do
    i = i + 1
  end
  return i
end

function dag.words(argv, first, last)
  local found = {}
  for i = first, last do
    found[#found + 1] = argv[i]
  end
  return found
end

-- A list behind a count: LOAD 2 a b. Returns it, and the position behind it.
function dag.list(argv, i, what, problem)
  local count = args.int(argv[i] or '', 1, 1000)
  if not count then
    raise('BADARG', problem or 'Invalid argument for ' .. what .. ': a count from 1 to 1000 is needed, then as many')
  end
  local found = {}
  for n = 1, count do
    local word = argv[i + n]
    if not word then
      raise('BADARG', what .. ' ' .. count .. ': only ' .. (n - 1) .. ' follow')
    end
    found[n] = word
  end
  return found, i + count + 1
end

-- Keys behind LOAD or PERSIST, with RedisAI's texts.
function dag.keys(KEYS, argv, i, word, doing)
  if not argv[i] or argv[i] == '|>' then
    raise('BADARG', 'missing arguments after ' .. word .. ' keyword in DAG command')
  end
  local count = args.int(argv[i], 1, 1000)
  if not count then
    raise('BADARG', 'invalid or negative value found in number of keys to ' .. word .. ': 1 to 1000')
  end
  local found = {}
  for n = 1, count do
    local key = argv[i + n]
    if not key or key == '|>' then
      raise('BADARG', 'number of keys to ' .. word .. ' ' .. doing .. ' does not match the number of given arguments')
    end
    inputs.declared(KEYS, key)
    found[n] = key
  end
  return found, i + count + 1
end

-- What stands before the first |>. Returns the request so far, and the position of that |>.
function dag.head(KEYS, argv, readonly)
  local request = { inputs = {}, owns = false, load = {}, timeout = false, ticket = false, corr = false }
  local rest, i = {}, 1
  while argv[i] and argv[i] ~= '|>' do
    local word = args.keyword(argv[i])
    if word == 'LOAD' and not request.loads then
      request.loads = true
      request.load, i = dag.keys(KEYS, argv, i + 1, word, 'into DAG')
    elseif word == 'PERSIST' and not request.outputs then
      if readonly then
        raise('BADARG', 'PERSIST cannot be specified in a read-only DAG')
      end
      request.outputs, i = dag.keys(KEYS, argv, i + 1, word, 'after DAG execution')
    elseif word == 'ROUTING' and not request.routing then
      request.routing = argv[i + 1]
      if not request.routing or request.routing == '|>' then
        raise('BADARG', 'Missing ROUTING value')
      end
      inputs.declared(KEYS, request.routing)
      i = i + 2
    elseif dag.HEAD[word] and word ~= 'LOAD' and word ~= 'PERSIST' and word ~= 'ROUTING' then
      local last = i + (word == 'ID' and 2 or 1)
      if word == 'TIMEOUT' and (not argv[last] or argv[last] == '|>') then
        raise('BADARG', 'No value provided for TIMEOUT')
      end
      local corr = argv[last + 1]
      if word == 'TICKET' and corr and corr ~= '|>' and not dag.HEAD[args.keyword(corr)] then
        last = last + 1
      end
      for n = i, last do
        rest[#rest + 1] = argv[n]
      end
      i = last + 1
    else
      raise('BADARG', 'Invalid DAG command. Unexpected argument:  ' .. args.printable(argv[i]))
    end
  end
  if not (request.loads or request.outputs or request.routing) then
    raise('BADARG', 'AI.DAGEXECUTE and AI.DAGEXECUTE_RO commands must contain at least one out of ROUTING, LOAD, PERSIST keywords')
  end
  options.read_all(rest, 1, request)
  return request, i
end

-- A tensor that an operation needs must have been loaded or made before it.
function dag.known(plan, names)
  for _, name in ipairs(names) do
    if not plan.known[name] then
      raise('BADARG', "INPUT key cannot be found in DAG: '" .. args.printable(name) .. "'")
    end
  end
end

function dag.add_input(plan, input)
  local list = plan.request.inputs
  list[#list + 1] = input
  plan.request.owns = plan.request.owns or input.mode == 'OWN'
  return #list - 1
end

-- TENSORSET name (dtype dim... [BLOB bytes | VALUES value...] | VALUE npy | KEY key | OWN key | REF key). Data may be any bytes,
-- |> too. Returns the position behind the operation.
function dag.TENSORSET(plan, argv, i)
  local name, word = argv[i], args.keyword(argv[i + 1] or '')
  local input, after
  if not name or name == '|>' or argv[i + 1] == '|>' or word == '' then
    raise('BADARG', "wrong number of arguments for 'AI.TENSORSET' command: name dtype dim... [BLOB bytes | VALUES value...]")
  elseif dag.SOURCES[word] then
    local data = argv[i + 2]
    if not data then
      raise('BADARG', 'TENSORSET name ' .. word .. ' needs one argument more')
    elseif word ~= 'VALUE' then
      inputs.declared(plan.KEYS, data)
    end
    input, after = { mode = word, data = data, value = false, size = 0 }, i + 3
  else
    after = dag.stop_of_data(argv, i + 1)
    local header, data = tensorset.read(dag.words(argv, i + 1, after - 1), 1)
    local value = header .. data
    if #value > dag.INLINE then
      raise('TOOBIG', 'a TENSORSET of ' .. #value .. ' bytes: in a DAG it takes ' .. dag.INLINE .. ' at most: SET the tensor and LOAD it, or '
        .. 'SET it to a temporary key and write TENSORSET name OWN key')
    end
    input = { mode = 'VALUE', data = value, value = false, size = 0 }
  end
  plan.operations[#plan.operations + 1] = { 's', name, dag.add_input(plan, input) }
  plan.known[name] = true
  return after
end

-- Where the data of a TENSORSET ends, whose dtype is at i.
function dag.stop_of_data(argv, i)
  local shape, at = {}, i + 1
  while argv[at] and argv[at] ~= '|>' do
    local word = args.keyword(argv[at])
    if word == 'BLOB' then
      return argv[at + 2] == '|>' and at + 2 or dag.stop(argv, at + 2)
    elseif word == 'VALUES' then
      local count = npy.count(shape, 1) or 0
      local after = at + 1 + count
      if count <= #argv and (argv[after] == nil and argv[after - 1] ~= nil or argv[after] == '|>') then
        return after
      end
      return dag.stop(argv, at + 1)
    end
    shape[#shape + 1] = args.int(argv[at]) or 0
    at = at + 1
  end
  return at
end

-- TENSORGET name [META] [BLOB | VALUES]: the reply has a .npy file, and so all of it.
function dag.TENSORGET(plan, argv, i)
  local after = dag.stop(argv, i)
  if after == i then
    raise('BADARG', "wrong number of arguments for 'AI.TENSORGET' command")
  end
  local meta, form
  for n = i + 1, after - 1 do
    local word = args.keyword(argv[n])
    if word == 'META' and not meta then
      meta = true
    elseif (word == 'BLOB' or word == 'VALUES') and not form then
      form = true
    elseif word == 'BLOB' or word == 'VALUES' then
      raise('BADARG', 'both BLOB and VALUES specified')
    else
      raise('BADARG', "unsupported data format: '" .. args.printable(argv[n]) .. "'")
    end
  end
  dag.known(plan, { argv[i] })
  plan.operations[#plan.operations + 1] = { 'g', argv[i] }
  return after
end

-- A target of an operation, as the catalog has it.
function dag.target(plan, target, is_script)
  local record = plan.targets[target]
  if not record then
    record = catalog.find(plan.own, target)
    submit.check_use(record)
    plan.targets[target] = record
    plan.uses[#plan.uses + 1] = target
    if plan.device == 'CPU' then
      plan.device = record.device
    end
  end
  if is_script and record.kind ~= 'script' then
    raise('BADARG', "'" .. record.title .. "' is no script: call it with MODELEXECUTE")
  elseif not is_script and record.kind == 'script' then
    raise('BADARG', "'" .. record.title .. "' is a script: call it with SCRIPTEXECUTE, which takes the name of its function")
  end
  return record
end

-- MODELEXECUTE target INPUTS n name... OUTPUTS n name...
function dag.MODELEXECUTE(plan, argv, i)
  local target = argv[i]
  if not target or target == '|>' then
    raise('BADARG', "wrong number of arguments for 'AI.MODELEXECUTE' command")
  elseif args.keyword(argv[i + 1] or '') ~= 'INPUTS' then
    raise('BADARG', 'INPUTS not specified')
  end
  local takes, gives
  takes, i = dag.list(argv, i + 2, 'INPUTS', 'Invalid argument for input_count')
  if args.keyword(argv[i] or '') ~= 'OUTPUTS' then
    raise('BADARG', 'OUTPUTS not specified')
  end
  gives, i = dag.list(argv, i + 1, 'OUTPUTS', 'Invalid argument for output_count')
  dag.no_timeout(argv[i])
  local record = dag.target(plan, target, false)
  local signature = record.signature
  if signature and #signature.inputs ~= #takes then
    raise('BADINPUT', 'Number of keys given as INPUTS here does not match model definition: ' .. #takes .. " for '" .. record.title
      .. "', which takes " .. #signature.inputs)
  elseif signature and signature.outputs and #signature.outputs ~= #gives then
    raise('BADINPUT', 'Number of keys given as OUTPUTS here does not match model definition: ' .. #gives .. " for '" .. record.title
      .. "', which gives " .. #signature.outputs)
  end
  dag.known(plan, takes)
  plan.operations[#plan.operations + 1] = { 'm', target, takes, gives }
  dag.make_known(plan, gives)
  return i
end

function dag.make_known(plan, names)
  for _, name in ipairs(names) do
    plan.known[name] = true
  end
end

function dag.no_timeout(word)
  if word and args.keyword(word) == 'TIMEOUT' then
    raise('BADARG', 'TIMEOUT not allowed within a DAG command: it stands before the first |>, for all of it')
  end
end

-- SCRIPTEXECUTE target function [KEYS n key...] [INPUTS n name...] [ARGS n arg...] [OUTPUTS n name...]
function dag.SCRIPTEXECUTE(plan, argv, i)
  if plan.readonly then
    raise('BADARG', 'AI.SCRIPTEXECUTE command cannot be specified in a read-only DAG')
  end
  local target, name = argv[i], argv[i + 1]
  if not target or target == '|>' or not name or name == '|>' then
    raise('BADARG', "wrong number of arguments for 'AI.SCRIPTEXECUTE' command: target function, then KEYS, INPUTS, ARGS, OUTPUTS")
  end
  local given = {}
  i = i + 2
  while argv[i] and argv[i] ~= '|>' do
    local word = args.keyword(argv[i])
    dag.no_timeout(argv[i])
    if word ~= 'KEYS' and word ~= 'INPUTS' and word ~= 'ARGS' and word ~= 'OUTPUTS' then
      raise('BADARG', 'Invalid AI.SCRIPTEXECUTE command. Unexpected argument: ' .. args.printable(argv[i]))
    elseif given[word] then
      raise('BADARG', 'Already encountered ' .. word .. ' in AI.SCRIPTEXECUTE')
    end
    given[word], i = dag.list(argv, i + 1, word)
  end
  for _, key in ipairs(given.KEYS or {}) do
    inputs.declared(plan.KEYS, key)
  end
  local record = dag.target(plan, target, true)
  if record.functions then
    local there = false
    for _, known in ipairs(record.functions) do
      there = there or known == name
    end
    if not there then
      raise('BADARG', 'Function ' .. args.printable(name) .. " does not exist in the given script: '" .. record.title .. "' has "
        .. args.printable(table.concat(record.functions, ', '), 200))
    end
  end
  local takes, gives = given.INPUTS or {}, given.OUTPUTS or {}
  dag.known(plan, takes)
  plan.operations[#plan.operations + 1] = { 'f', target, name, takes, gives, given.KEYS or {}, given.ARGS or {} }
  dag.make_known(plan, gives)
  return i
end

dag.OPERATIONS = { TENSORSET = true, TENSORGET = true, MODELEXECUTE = true, SCRIPTEXECUTE = true }

-- The operations, from the first |> on.
function dag.read_operations(plan, argv, i)
  while argv[i] == '|>' do
    local word = args.keyword(argv[i + 1] or '')
    word = string.match(word, '^AI[._](.+)$') or word
    if dag.DEPRECATED[word] then
      raise('BADARG', 'Deprecated AI.' .. word .. ' cannot be used in AI.DAGEXECUTE command')
    elseif not dag.OPERATIONS[word] then
      raise('BADARG', "Unsupported command within DAG: '" .. args.printable(argv[i + 1] or '') .. "'")
    elseif #plan.operations >= dag.MAX_OPERATIONS then
      raise('TOOBIG', 'a DAG has ' .. dag.MAX_OPERATIONS .. ' operations at most: store a part of it as a graph')
    end
    local start = i
    i = dag[word](plan, argv, i + 2)
    if argv[i] and argv[i] ~= '|>' then
      raise('BADARG', "unexpected '" .. args.printable(argv[i]) .. "' behind operation " .. #plan.operations .. ', ' .. args.printable(argv[start + 1]))
    end
  end
  if not plan.operations[1] then
    raise('BADARG', 'DAG is empty')
  end
end

-- In place of the record of a model: a DAG belongs to none.
function dag.record(plan)
  return {
    id = '0-1', uid = '0', key = '', version = 1, title = 'the DAG', state = 'ready', device = plan.device, uses = plan.uses,
    head = '\156' .. cmsgpack.pack(1, 'run', '0-1', '', 1),
  }
end

function dag.submit(KEYS, argv, readonly)
  if not argv[1] then
    raise('BADARG', "missing arguments for 'AI.DAGEXECUTE" .. (readonly and '_RO' or '') .. "' command")
  end
  local own = node.keys()
  local request, i = dag.head(KEYS, argv, readonly)
  request.key, request.timeout = KEYS[1], request.timeout or 30000
  if request.client and seen.taken(own, request) then
    return ''
  end
  local plan = {
    KEYS = KEYS, own = own, readonly = readonly, request = request, operations = {}, known = {}, targets = {}, uses = {}, device = 'CPU',
  }
  for _, key in ipairs(request.load) do
    dag.add_input(plan, { mode = 'KEY', data = key, value = false, size = 0 })
    plan.known[key] = true
  end
  dag.read_operations(plan, argv, i)
  for _, key in ipairs(request.outputs or {}) do
    if not plan.known[key] then
      raise('BADARG', "PERSIST key cannot be found in DAG: '" .. args.printable(key) .. "'")
    end
  end
  request.record = dag.record(plan)
  request.extra = { d = { n = request.load, o = plan.operations, p = request.outputs or {} }, m = submit.members(own, request.record) }
  return submit.run(request)
end

-- Where a call that is refused wants its reply: TICKET among the words before the first |>, as options.ticket() takes them.
function dag.ticket_words(argv)
  local last = dag.stop(argv, 1) - 1
  for i = 1, last - 1 do
    if args.keyword(argv[i]) == 'TICKET' and string.sub(argv[i + 1], 1, 4) == 'ks:{' then
      local corr = i + 2 <= last and argv[i + 2] or nil
      if corr and dag.HEAD[args.keyword(corr)] then
        corr = nil
      end
      return { '', '', 'TICKET', argv[i + 1], corr }
    end
  end
  return {}
end

function dag.answered(KEYS, argv, readonly)
  return submit.answered(function(_, _)
    return dag.submit(KEYS, argv, readonly)
  end, KEYS, dag.ticket_words(argv))
end
