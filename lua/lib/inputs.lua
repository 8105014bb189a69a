--- @requires guard args keys node npy seal features
-- The tensors that a call names: declared, well formed, fit for the model; and taken as they are now.

local inputs = {}

local INLINE = 32768       -- inputs up to this ride in the entry
-- As text: the server prints every number in a call with 17 digits, which takes longer than most commands.
local INLINE_END = '32768'
local CAPTURE_MAX = 67108864
local INLINE_FIELDS = { '0', '1', '2', '3', '4', '5', '6', '7' }

-- Keys in ARGV must be declared, or cluster routing and ACLs would not see them.
local declared, declared_of = {}, nil
function inputs.is_declared(KEYS, key)
  if key == KEYS[1] then
    return key ~= nil
  end
  if declared_of ~= KEYS then
    declared, declared_of = {}, KEYS
    for n = 1, #KEYS do
      declared[KEYS[n]] = true
    end
  end
  return declared[key] == true
end

function inputs.declared(KEYS, key)
  if inputs.is_declared(KEYS, key) then
    return
  end
  raise('BADARG', "key '" .. args.printable(key) .. "' is used but not among the KEYS of the call")
end

-- The keys behind a word such as OUTPUTS, and the position behind them. Without KEYS they need not be declared.
function inputs.keys(KEYS, argv, i, word)
  local count = args.int(argv[i] or '', 1, 1000)
  if not count then
    raise('BADARG', word .. ' needs a positive number of keys, then the keys')
  end
  local found = {}
  for n = 1, count do
    local key = argv[i + n]
    if not key then
      raise('BADARG', word .. ' ' .. count .. ': only ' .. (n - 1) .. ' keys follow')
    end
    if KEYS then
      inputs.declared(KEYS, key)
    end
    found[n] = key
  end
  return found, i + count + 1
end

-- A key that is given away cannot be another input too.
function inputs.own_once(list)
  local used = {}
  for _, input in ipairs(list) do
    if input.mode ~= 'VALUE' and input.mode ~= 'GATHER' then
      local mode = used[input.data]
      if mode and (mode == 'OWN' or input.mode == 'OWN') then
        raise('BADARG', "input key '" .. args.printable(input.data) .. "' is given as OWN, and as another input too")
      end
      used[input.data] = input.mode
    end
  end
end

local function misfit(record, spec, header)
  if spec.dtype ~= '' and spec.dtype ~= header.dtype then
    raise('BADDTYPE', "input '" .. spec.name .. "' of '" .. record.title .. "' takes " .. spec.dtype .. ', got ' .. header.dtype .. ': convert it')
  end
  if spec.shape then
    local same = #spec.shape == #header.shape
    for n = 1, #spec.shape do
      same = same and (spec.shape[n] < 0 or spec.shape[n] == header.shape[n])
    end
    if not same then
      raise('BADSHAPE', "input '" .. spec.name .. "' of '" .. record.title .. "' takes shape [" .. table.concat(spec.shape, ',')
        .. '] (-1: any), got [' .. table.concat(header.shape, ',') .. ']')
    end
  end
  spec.fits[header] = true
end

-- The npy header of one input; `key` where it lies in one.
local function parse(prefix, total, key)
  local header, problem, needed = npy.parse(prefix, total)
  if needed and key then
    header, problem = npy.parse(redis.call('GETRANGE', key, 0, needed - 1), total)
  end
  if header then
    return header
  end
  if key then
    raise('NOTENSOR', "input key '" .. args.printable(key) .. "' is not a tensor: " .. problem)
  end
  raise('BADNPY', 'input VALUE: ' .. problem)
end

local function refused_read(key, reply)
  if not redis.acl_check_cmd('GETRANGE', key, '0', '0') then
    raise('NOPERM', "this user may not read input key '" .. args.printable(key) .. "'")
  end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then
    raise('WRONGTYPE', "input key '" .. args.printable(key) .. "' holds something else than a tensor")
  end
  error(reply, 0)
end

-- Look at an input: sets its size, and its value where that will ride in the entry. `spec` of the signature, if known.
function inputs.look(record, spec, input)
  local mode, data = input.mode, input.data
  local value, size, key
  if mode == 'VALUE' then
    value, size = data, #data
    if size > INLINE then
      raise('TOOBIG', 'a VALUE of ' .. size .. ' bytes: above ' .. INLINE .. ' SET it to a temporary key and name that with OWN')
    end
    input.value = value
  elseif mode == 'GATHER' then
    value = features.value(data, spec)
    input.value, size = value, #value
  else
    key = data
    -- One command for what is small, and that is nearly everything: a longer value shows by filling the range. Where it
    -- most likely is long, no more than the header: Lua looks at each byte of a string that it gets.
    local front = mode ~= 'KEY' or (spec and spec.large)
    value = redis.pcall('GETRANGE', key, '0', front and npy.PREFIX_END or INLINE_END)
    if type(value) == 'table' then
      refused_read(key, value)
    end
    if mode == 'OWN' and not redis.acl_check_cmd('UNLINK', key) then
      raise('NOPERM', "this user may not take input key '" .. args.printable(key) .. "' away, as OWN does")
    end
    size = #value
    if size == 0 then
      raise('NOTENSOR', "input key '" .. args.printable(key) .. "' does not exist: SET a .npy file or call AI_TENSORSET first")
    end
    if front or size > INLINE then
      size = redis.call('STRLEN', key)
      if mode == 'KEY' and size > CAPTURE_MAX then
        raise('TOOBIG', "input key '" .. args.printable(key) .. "' has " .. size .. ' bytes: above ' .. CAPTURE_MAX
          .. ' no copy is taken: give it as OWN (moved) or REF (read when the job runs)')
      end
    end
    if spec then
      spec.large = size > INLINE
    end
    if mode ~= 'REF' and size <= INLINE then
      if #value < size then
        value = redis.call('GETRANGE', key, '0', INLINE_END)
      end
      input.value = value
    end
  end
  input.size = size
  local header = parse(value, size, key)
  if spec and not spec.fits[header] then
    misfit(record, spec, header)
  end
end

-- An output may replace nothing but a tensor.
function inputs.writable(key)
  local start = redis.pcall('GETRANGE', key, '0', '5')
  if type(start) == 'table' then
    if string.find(start.err, 'WRONGTYPE', 1, true) then
      return "WRONGTYPE output key '" .. args.printable(key) .. "' holds something else than a tensor: delete it or name another"
    end
    return raised_text(start)
  end
  if (start == '' and redis.call('EXISTS', key) == 1) or (start ~= '' and not npy.is_tensor(start)) then
    return "WRONGTYPE output key '" .. args.printable(key) .. "' holds a string that is not a tensor: delete it or name another"
  end
end

-- Take the inputs as they are now, as inline fields of `entry` or as private keys in their own slots. Returns how each is
-- found again; nil: all of them are inline.
function inputs.capture(entry, list, expires, owns)
  local modes, inline = nil, 0
  for n = 1, #list do
    local input = list[n]
    if input.value then
      inline = inline + 1
      entry[2 * inline + 1] = INLINE_FIELDS[inline] or tostring(inline - 1)
      entry[2 * inline + 2] = input.value
      if modes then
        modes[n] = 'v'
      end
    else
      if not modes then
        modes = {}
        for before = 1, n - 1 do
          modes[before] = 'v'
        end
      end
      if input.mode == 'REF' then
        modes[n] = 'r' .. input.data
      else
        local name = keys.capture(input.data, seal.unguessable(node.unique() .. '-' .. n))
        if input.mode == 'OWN' then
          redis.call('RENAME', input.data, name)
        else
          redis.call('COPY', input.data, name)
        end
        redis.call('PEXPIREAT', name, expires)
        modes[n] = 'c' .. name
      end
    end
  end
  if owns then
    for _, input in ipairs(list) do
      if input.value and input.mode == 'OWN' then
        redis.call('UNLINK', input.data)
      end
    end
  end
  return modes
end
