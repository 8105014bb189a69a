--- @requires args guard inputs features options
-- The arguments of AI_PREDICT, which are also those of what a trigger runs.

local predict = {}

local MODES = { VALUE = 'VALUE', KEY = 'KEY', OWN = 'OWN', REF = 'REF' }

-- From position `first` of argv on: target INPUTS n spec... [NAMES ..] [OUTPUTS ..] [options]. Returns a request for
-- submit.run. Keys must be among KEYS, unless `any_key`: then a trigger names them, and no caller declares them. Here only
-- the form is looked at, not what keys hold.
function predict.parse(KEYS, argv, first, any_key)
  local target = argv[first]
  local count = args.int(argv[first + 2] or '', 1, 1000)
  if not count or args.keyword(argv[first + 1]) ~= 'INPUTS' then
    raise('BADARG', 'AI_PREDICT takes: target INPUTS n (VALUE npy | KEY key | OWN key | REF key | HASH ..)... [NAMES n name...] [OUTPUTS n key...] [TIMEOUT ms]')
  end
  local list, owns, i = {}, false, first + 3
  for n = 1, count do
    local word, data = argv[i] or '', argv[i + 1]
    local mode = MODES[word] or MODES[args.keyword(word)]
    if not mode then
      mode = 'GATHER'
      data, i = features.read(KEYS, argv, i, not any_key and inputs.declared)
    elseif mode ~= 'VALUE' and data then
      if not any_key then
        inputs.declared(KEYS, data)
      end
      owns = owns or mode == 'OWN'
    end
    if not data then
      raise('BADARG', 'input ' .. n .. ' of ' .. count .. ': VALUE npy, KEY key, OWN key, REF key, or ' .. features.WORDS
        .. " and what belongs to it expected, got '" .. args.printable(word) .. "'")
    end
    list[n] = { mode = mode, data = data, value = false, size = 0 }
    if mode ~= 'GATHER' then
      i = i + 2
    end
  end
  local request = { target = target, inputs = list, owns = owns, names = nil, outputs = nil, timeout = false, ticket = false, corr = false }
  local word = args.keyword(argv[i] or '')
  if word == 'NAMES' then
    if args.int(argv[i + 1] or '', 1, 1000) ~= count or not argv[i + 1 + count] then
      raise('BADARG', 'NAMES needs as many names as there are inputs, ' .. count)
    end
    request.names = {}
    for n = 1, count do
      request.names[n] = argv[i + 1 + n]
    end
    i = i + 2 + count
    word = args.keyword(argv[i] or '')
  end
  if word == 'OUTPUTS' then
    request.outputs, i = inputs.keys(not any_key and KEYS, argv, i + 1, 'OUTPUTS')
  end
  options.read_all(argv, i, request)
  return request
end
