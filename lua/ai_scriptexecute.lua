--- AI_SCRIPTEXECUTE: call a function of a script on tensors; results come back in the reply or go to keys.
-- KEYS[1..] key          every tensor key that INPUTS and OUTPUTS name
-- ARGV[1] target         name or name@version of a script
-- ARGV[2] function       one of its entry points
-- ARGV[3..] arguments    (KEYS n name... | INPUTS n ([OWN|REF] key | VALUE npy)...) [ARGS n text...] [OUTPUTS n key...], KEYS or
--                        INPUTS first, each at most once, then [TIMEOUT ms] [TICKET key [corr]] [ID client seq] [USER name]
--                        [PRIORITY HIGH|NORMAL|LOW]
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG BADNPY NOMODEL MODELFAILED NOTENSOR WRONGTYPE TOOBIG BUSY NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local SCRIPTEXECUTE_WORDS = 32768 -- bytes that names and texts may have, together

local SCRIPTEXECUTE_MODES = { OWN = true, REF = true, VALUE = true }

local SCRIPTEXECUTE_COUNTS = {
  KEYS = 'Invalid or negative value found in number of KEYS',
  INPUTS = 'Invalid argument for inputs count in AI_SCRIPTEXECUTE',
  ARGS = 'Invalid argument for the number of ARGS in AI_SCRIPTEXECUTE',
  OUTPUTS = 'Invalid argument for output_count in AI_SCRIPTEXECUTE',
}

local function scriptexecute_count(argv, i, word)
  if not argv[i] then
    raise('BADARG', 'Missing arguments after ' .. word .. ' keyword: a number, then as many arguments')
  end
  -- A function may need nothing: INPUTS 0 says so.
  local least = word == 'INPUTS' and 0 or 1
  local count = args.int(argv[i], least, 1000)
  if not count then
    raise('BADARG', SCRIPTEXECUTE_COUNTS[word] .. ': ' .. least .. ' to 1000')
  end
  return count
end

local function scriptexecute_texts(argv, i, word, request)
  local count = scriptexecute_count(argv, i, word)
  local found = {}
  for n = 1, count do
    found[n] = argv[i + n] or raise('BADARG', 'Number of ' .. word .. ' does not match the number of given arguments: ' .. count
      .. ' were announced, ' .. (n - 1) .. ' follow')
    request.words = request.words + #found[n]
  end
  if request.words > SCRIPTEXECUTE_WORDS then
    raise('TOOBIG', 'KEYS and ARGS have ' .. request.words .. ' bytes, at most ' .. SCRIPTEXECUTE_WORDS .. ': give more than that as a tensor')
  end
  return found, i + count + 1
end

local function scriptexecute_inputs(KEYS, argv, i, request)
  local count = scriptexecute_count(argv, i, 'INPUTS')
  i = i + 1
  for n = 1, count do
    local word = args.keyword(argv[i] or '')
    local mode = 'KEY'
    -- A key may be called like one of the words: then it stands where a declared key is expected.
    if SCRIPTEXECUTE_MODES[word] and not inputs.is_declared(KEYS, argv[i]) then
      mode, i = word, i + 1
    end
    local data = argv[i]
    if not data then
      raise('BADARG', 'INPUTS ' .. count .. ': only ' .. (n - 1) .. ' follow')
    end
    if mode ~= 'VALUE' then
      inputs.declared(KEYS, data)
    end
    request.inputs[n] = { mode = mode, data = data, value = false, size = 0 }
    request.owns = request.owns or mode == 'OWN'
    i = i + 1
  end
  return i
end

local function scriptexecute_parsed(KEYS, ARGV)
  if not ARGV[2] then
    raise('BADARG', "wrong number of arguments for 'AI_SCRIPTEXECUTE': target function (KEYS n key... | INPUTS n key...) ...")
  end
  local request = { target = ARGV[1], inputs = {}, owns = false, extra = { f = ARGV[2] }, words = #ARGV[2] }
  local i, first, seen_words = 3, true, {}
  local word = args.keyword(ARGV[3] or '')
  while SCRIPTEXECUTE_COUNTS[word] do
    if seen_words[word] then
      raise('BADARG', 'Invalid arguments provided to AI_SCRIPTEXECUTE: ' .. word .. ' is there twice')
    end
    if first and word ~= 'KEYS' and word ~= 'INPUTS' then
      break
    end
    seen_words[word], first = true, false
    if word == 'INPUTS' then
      i = scriptexecute_inputs(KEYS, ARGV, i + 1, request)
    elseif word == 'OUTPUTS' then
      scriptexecute_count(ARGV, i + 1, word)
      request.outputs, i = inputs.keys(KEYS, ARGV, i + 1, word)
    elseif word == 'KEYS' then
      request.extra.k, i = scriptexecute_texts(ARGV, i + 1, word, request)
    else
      request.extra.a, i = scriptexecute_texts(ARGV, i + 1, word, request)
    end
    word = args.keyword(ARGV[i] or '')
  end
  if first then
    raise('BADARG', 'KEYS or INPUTS scope must be provided first for AI_SCRIPTEXECUTE command')
  end
  options.read_all(ARGV, i, request)
  request.key = KEYS[1]
  return submit.run(request)
end

local function AI_SCRIPTEXECUTE(KEYS, ARGV)
  return submit.answered(scriptexecute_parsed, KEYS, ARGV)
end
