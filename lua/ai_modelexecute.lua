--- AI_MODELEXECUTE: run a model on tensor keys; results are written to tensor keys.
-- KEYS[1..] key          every tensor key that ARGV names
-- ARGV[1] target         name, name@version or name@alias
-- ARGV[2..] arguments    INPUTS n ([OWN|REF] key)... OUTPUTS n key... [TIMEOUT ms] [TICKET key [corr]] [ID client seq]
--                        [USER name] [PRIORITY HIGH|NORMAL|LOW]
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG NOMODEL MODELFAILED NOTENSOR WRONGTYPE BADINPUT BADDTYPE BADSHAPE TOOBIG BUSY NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function modelexecute_inputs(KEYS, argv, i)
  local count = args.int(argv[i] or '', 1, 1000)
  if not count then
    raise('BADARG', 'INPUTS needs a positive number of keys, then the keys')
  end
  i = i + 1
  local list, owns = {}, false
  for n = 1, count do
    local word = string.upper(argv[i] or '')
    local mode = 'KEY'
    -- A key may be called OWN or REF: then the word stands where a declared key is expected.
    if (word == 'OWN' or word == 'REF') and not inputs.is_declared(KEYS, argv[i]) then
      mode, i = word, i + 1
    end
    local key = argv[i]
    if not key then
      raise('BADARG', 'INPUTS ' .. count .. ': only ' .. (n - 1) .. ' keys follow')
    end
    inputs.declared(KEYS, key)
    list[n] = { mode = mode, data = key, value = false, size = 0 }
    owns = owns or mode == 'OWN'
    i = i + 1
  end
  return list, i, owns
end

local function modelexecute_parsed(KEYS, ARGV)
  if not ARGV[1] or string.upper(ARGV[2] or '') ~= 'INPUTS' then
    raise('BADARG', "INPUTS not specified: AI_MODELEXECUTE takes: target INPUTS n key... OUTPUTS n key... [TIMEOUT ms]")
  end
  local request = { target = ARGV[1] }
  local i
  request.inputs, i, request.owns = modelexecute_inputs(KEYS, ARGV, 3)
  if string.upper(ARGV[i] or '') ~= 'OUTPUTS' then
    raise('BADARG', "OUTPUTS not specified after the input keys" .. (ARGV[i] and ": got '" .. args.printable(ARGV[i]) .. "'" or ''))
  end
  request.outputs, i = inputs.keys(KEYS, ARGV, i + 1, 'OUTPUTS')
  options.read_all(ARGV, i, request)
  request.key = KEYS[1]
  return submit.run(request)
end

local function AI_MODELEXECUTE(KEYS, ARGV)
  return submit.answered(modelexecute_parsed, KEYS, ARGV)
end
