--- AI_PREDICT: run a model on values in hand, tensor keys, or both; results come back in the reply or go to keys.
-- KEYS[1..] key          every tensor key that ARGV names
-- ARGV[1] target         name, name@version or name@alias
-- ARGV[2..] arguments    INPUTS n (VALUE npy | KEY key | OWN key | REF key)... [NAMES n name...] [OUTPUTS n key...]
--                        [TIMEOUT ms] [TICKET key [corr]] [ID client seq] [USER name] [PRIORITY HIGH|NORMAL|LOW]
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG BADNPY NOMODEL MODELFAILED NOTENSOR WRONGTYPE BADINPUT BADDTYPE BADSHAPE TOOBIG BUSY NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local MODES = { VALUE = 'VALUE', KEY = 'KEY', OWN = 'OWN', REF = 'REF' }

local function predict_parsed(KEYS, ARGV)
  local count = args.int(ARGV[3] or '', 1, 1000)
  if not count or args.keyword(ARGV[2]) ~= 'INPUTS' then
    raise('BADARG', 'AI_PREDICT takes: target INPUTS n (VALUE npy | KEY key | OWN key | REF key)... [NAMES n name...] [OUTPUTS n key...] [TIMEOUT ms]')
  end
  local list, owns, i = {}, false, 4
  for n = 1, count do
    local word, data = ARGV[i] or '', ARGV[i + 1]
    local mode = MODES[word] or MODES[args.keyword(word)]
    if not mode or not data then
      raise('BADARG', 'input ' .. n .. ' of ' .. count .. ": VALUE npy, KEY key, OWN key or REF key expected, got '" .. args.printable(word) .. "'")
    end
    if mode ~= 'VALUE' then
      inputs.declared(KEYS, data)
      owns = owns or mode == 'OWN'
    end
    list[n] = { mode = mode, data = data, value = false, size = 0 }
    i = i + 2
  end
  local request = { target = ARGV[1], inputs = list, owns = owns, names = nil, outputs = nil, timeout = false, ticket = false, corr = false }
  local word = args.keyword(ARGV[i] or '')
  if word == 'NAMES' then
    if args.int(ARGV[i + 1] or '', 1, 1000) ~= count or not ARGV[i + 1 + count] then
      raise('BADARG', 'NAMES needs as many names as there are inputs, ' .. count)
    end
    request.names = {}
    for n = 1, count do
      request.names[n] = ARGV[i + 1 + n]
    end
    i = i + 2 + count
    word = args.keyword(ARGV[i] or '')
  end
  if word == 'OUTPUTS' then
    request.outputs, i = inputs.keys(KEYS, ARGV, i + 1, 'OUTPUTS')
  end
  options.read_all(ARGV, i, request)
  request.key = KEYS[1]
  return submit.run(request)
end

local function AI_PREDICT(KEYS, ARGV)
  return submit.answered(predict_parsed, KEYS, ARGV)
end
