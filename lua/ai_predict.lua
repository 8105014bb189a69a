--- AI_PREDICT: run a model on values in hand, tensor keys, or both; results come back in the reply or go to keys.
-- KEYS[1..] key          every tensor key that ARGV names
-- ARGV[1] target         name, name@version or name@alias
-- ARGV[2..] arguments    INPUTS n (VALUE npy | KEY key | OWN key | REF key)... [NAMES n name...] [OUTPUTS n key...]
--                        [TIMEOUT ms] [TICKET key [corr]] [ID client seq]
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG BADNPY NOMODEL MODELFAILED NOTENSOR WRONGTYPE BADINPUT BADDTYPE BADSHAPE TOOBIG BUSY NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function predict_parsed(KEYS, ARGV)
  local count = args.int(ARGV[3] or '', 1, 1000)
  if not count or string.upper(ARGV[2] or '') ~= 'INPUTS' then
    raise('BADARG', 'AI_PREDICT takes: target INPUTS n (VALUE npy | KEY key | OWN key | REF key)... [NAMES n name...] [OUTPUTS n key...] [TIMEOUT ms]')
  end
  local request = { target = ARGV[1], inputs = {}, outputs = {} }
  local i = 4
  for n = 1, count do
    local mode, data = string.upper(ARGV[i] or ''), ARGV[i + 1]
    if (mode ~= 'VALUE' and mode ~= 'KEY' and mode ~= 'OWN' and mode ~= 'REF') or not data then
      raise('BADARG', 'input ' .. n .. ' of ' .. count .. ": VALUE npy, KEY key, OWN key or REF key expected, got '" .. args.printable(ARGV[i] or '') .. "'")
    end
    if mode ~= 'VALUE' then
      submit.declared(KEYS, data)
    end
    request.inputs[n] = { mode = mode, data = data }
    request.owns = request.owns or mode == 'OWN'
    i = i + 2
  end
  if string.upper(ARGV[i] or '') == 'NAMES' then
    if args.int(ARGV[i + 1] or '', 1, 1000) ~= count or not ARGV[i + 1 + count] then
      raise('BADARG', 'NAMES needs as many names as there are inputs, ' .. count)
    end
    request.names = {}
    for n = 1, count do
      request.names[n] = ARGV[i + 1 + n]
    end
    i = i + 2 + count
  end
  if string.upper(ARGV[i] or '') == 'OUTPUTS' then
    request.outputs, i = submit.keys(KEYS, ARGV, i + 1, 'OUTPUTS')
  end
  submit.all_options(ARGV, i, request)
  return submit.run(request)
end

local function AI_PREDICT(KEYS, ARGV)
  return submit.answered(predict_parsed, KEYS, ARGV)
end
