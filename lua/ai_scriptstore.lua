--- AI_SCRIPTSTORE: add a version to a script; an executor of its device then compiles it, or finds its functions.
-- KEYS[1] key            the script
-- ARGV[1] device         name of the device queue
-- ARGV[2..] options      [TAG t] ENTRY_POINTS n function... [OPTIONS json] [REPLY VERSION] (SOURCE text | FUNCTIONS)
-- Returns: OK, or with REPLY VERSION the version number
-- Errors: BADARG TOOBIG WRONGTYPE TRYAGAIN
-- Flags: allow-cross-slot-keys

local SCRIPTSTORE_MAX = 262144 -- what executors compile

local function scriptstore_parse(argv)
  local spec = { backend = 'SCRIPT', tag = '', batchsize = 0, minbatchsize = 0, minbatchtimeout = 0, inputs = {}, outputs = {} }
  spec.device = string.upper(argv[1])
  store.check_device(spec.device)
  local points, limit
  local i = 2
  while argv[i] do
    local word = args.keyword(argv[i])
    if word == 'TAG' then
      spec.tag, i = argv[i + 1] or raise('BADARG', 'TAG needs a value'), i + 2
    elseif word == 'ENTRY_POINTS' then
      points, i = scripts.read_names(argv, i + 1)
    elseif word == 'OPTIONS' then
      limit, i = scripts.run_limit(argv[i + 1] or ''), i + 2
    elseif word == 'REPLY' and string.upper(argv[i + 1] or '') == 'VERSION' then
      spec.reply, i = true, i + 2
    elseif word == 'SOURCE' and argv[i + 1] and not argv[i + 2] then
      spec.blob = argv[i + 1]
      break
    elseif word == 'FUNCTIONS' and not argv[i + 1] then
      spec.backend = 'FUNCTION'
      break
    else
      raise('BADARG', "Invalid argument: '" .. args.printable(argv[i]) .. "'; AI_SCRIPTSTORE takes: device [TAG t] ENTRY_POINTS n function..."
        .. ' (SOURCE text | FUNCTIONS)')
    end
  end
  if not points then
    raise('BADARG', 'Insufficient arguments, missing script entry points: ENTRY_POINTS n function...')
  end
  if spec.backend == 'FUNCTION' then
    spec.blob = table.concat(points, '\n')
  elseif not spec.blob or spec.blob == '' then
    raise('BADARG', 'Insufficient arguments, missing script SOURCE, or FUNCTIONS for those of the operator')
  elseif #spec.blob > SCRIPTSTORE_MAX then
    raise('TOOBIG', 'a script of ' .. #spec.blob .. ' bytes: at most ' .. SCRIPTSTORE_MAX .. ' are compiled; store several scripts')
  end
  spec.options = '{"entry_points":' .. cjson.encode(points) .. (limit and ',"run_limit_ms":' .. limit or '') .. '}'
  return spec
end

local function AI_SCRIPTSTORE(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_SCRIPTSTORE': give the script's name as the one key")
  end
  if not ARGV[1] then
    raise('BADARG', "wrong number of arguments for 'AI_SCRIPTSTORE'")
  end
  local spec = scriptstore_parse(ARGV)
  return store.reply(spec, store.add(key, spec))
end
