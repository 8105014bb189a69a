--- AI_MODELSTORE: add a version to a model; an executor of its device then loads it.
-- KEYS[1] key            the model
-- ARGV[1] backend        ONNX, TORCH, or what an executor's plug-in adds
-- ARGV[2] device         name of the device queue
-- ARGV[3..] options      [TAG t] [BATCHSIZE n [MINBATCHSIZE m [MINBATCHTIMEOUT ms]]] [INPUTS n name... OUTPUTS n name...]
--                        [OPTIONS json] [REPLY VERSION] (BLOB bytes... | UPLOAD id chunks size DIGEST sha256)
-- Returns: OK, or with REPLY VERSION the version number
-- Errors: BADARG TOOBIG WRONGTYPE UPLOADLOST TRYAGAIN
-- Flags: allow-cross-slot-keys

local function modelstore_names(argv, i, word)
  local count = args.int(argv[i] or '', 1, 1000)
  if not count then
    raise('BADARG', word .. ' needs a positive number of names, then the names')
  end
  local names = {}
  for n = 1, count do
    names[n] = argv[i + n]
  end
  if #names < count then
    raise('BADARG', word .. ' ' .. count .. ': only ' .. #names .. ' names follow')
  end
  return names, i + count + 1
end

local function modelstore_number(argv, i, word, least)
  local number = args.int(argv[i] or '', least, 1000000)
  if not number then
    raise('BADARG', 'Invalid argument for ' .. word .. ": a whole number of at least " .. least .. " is needed")
  end
  return number, i + 1
end

local function modelstore_parse(argv)
  local spec = { tag = '', batchsize = 0, minbatchsize = 0, minbatchtimeout = 0, inputs = {}, outputs = {}, options = '{}' }
  spec.backend = string.upper(argv[1] or '')
  spec.device = string.upper(argv[2] or '')
  if not string.find(spec.backend, '^[A-Z][A-Z0-9_]*$') then
    raise('BADARG', 'unsupported backend: give ONNX or TORCH')
  end
  if spec.backend == 'TF' or spec.backend == 'TFLITE' then
    raise('BADARG', 'unsupported backend ' .. spec.backend .. ': convert the model to ONNX (tf2onnx) and store it as ONNX')
  end
  store.check_device(spec.device)
  local i = 3
  while argv[i] do
    local word = string.upper(argv[i])
    if word == 'TAG' then
      spec.tag, i = argv[i + 1] or raise('BADARG', 'TAG needs a value'), i + 2
    elseif word == 'BATCHSIZE' then
      spec.batchsize, i = modelstore_number(argv, i + 1, word, 0)
    elseif word == 'MINBATCHSIZE' then
      spec.minbatchsize, i = modelstore_number(argv, i + 1, word, 0)
    elseif word == 'MINBATCHTIMEOUT' then
      spec.minbatchtimeout, i = modelstore_number(argv, i + 1, word, 0)
    elseif word == 'INPUTS' then
      spec.inputs, i = modelstore_names(argv, i + 1, word)
    elseif word == 'OUTPUTS' then
      spec.outputs, i = modelstore_names(argv, i + 1, word)
    elseif word == 'OPTIONS' then
      local ok, options = pcall(cjson.decode, argv[i + 1] or '')
      if not ok or type(options) ~= 'table' or not string.find(argv[i + 1], '^%s*{') then
        raise('BADARG', 'OPTIONS needs a JSON object')
      end
      spec.options, i = argv[i + 1], i + 2
    elseif word == 'REPLY' and string.upper(argv[i + 1] or '') == 'VERSION' then
      spec.reply, i = true, i + 2
    elseif word == 'BLOB' then
      spec.blob = table.concat(argv, '', i + 1)
      break
    elseif word == 'UPLOAD' then
      spec.upload = argv[i + 1] or ''
      spec.chunks = args.int(argv[i + 2] or '', 1, models.MAX_CHUNKS)
      spec.size = args.int(argv[i + 3] or '', 1, 4398046511104)
      spec.digest = string.lower(argv[i + 5] or '')
      if not string.find(spec.upload, '^[%w_-]+$') or #spec.upload > 64 or not spec.chunks or not spec.size
        or string.upper(argv[i + 4] or '') ~= 'DIGEST' or not string.find(spec.digest, '^%x+$') or #spec.digest ~= 64 or argv[i + 6] then
        raise('BADARG', 'UPLOAD takes: id chunks size DIGEST sha256, at the end')
      end
      break
    else
      raise('BADARG', "Invalid argument, expected BLOB: got '" .. args.printable(argv[i]) .. "'")
    end
  end
  return spec
end

local function modelstore_check(spec)
  if spec.minbatchsize > 0 and spec.batchsize == 0 then
    raise('BADARG', 'MINBATCHSIZE specified without BATCHSIZE')
  end
  if spec.minbatchtimeout > 0 and spec.minbatchsize == 0 then
    raise('BADARG', 'MINBATCHTIMEOUT specified without MINBATCHSIZE')
  end
  if spec.minbatchsize > spec.batchsize then
    raise('BADARG', 'MINBATCHSIZE ' .. spec.minbatchsize .. ' is larger than BATCHSIZE ' .. spec.batchsize)
  end
  if not spec.blob and not spec.upload then
    raise('BADARG', 'Insufficient arguments, missing model BLOB')
  end
  if spec.blob == '' then
    raise('BADARG', 'the model BLOB is empty')
  end
end

local function AI_MODELSTORE(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_MODELSTORE': give the model's name as the one key")
  end
  local spec = modelstore_parse(ARGV)
  modelstore_check(spec)
  return store.reply(spec, store.add(key, spec))
end
