--- @requires guard args keys node catalog jobs npy
-- From a parsed request to an entry in the job stream. Everything is checked before anything is written.

local submit = {}

local INLINE = 32768       -- inputs up to this ride in the entry
-- As text: the server prints every number in a call with 17 digits, which takes longer than most commands.
local INLINE_END = '32768'
local CAPTURE_MAX = 67108864
local MAX_JOBS = 10000     -- per device queue
local MAX_BYTES = 1073741824
local SEEN_BLOCK = 8192
local SEEN_MS = 60000
local INLINE_FIELDS = { '0', '1', '2', '3', '4', '5', '6', '7' }

-- The kinds of private names (docs/protocol.md section 2) that are lists for replies.
local TICKETS = { t = true, mb = true, ticket = true }

local function is_ticket(name)
  return name ~= nil and #name <= 1024 and TICKETS[string.match(name, '^ks:{[^}]+}:(%l+)%f[:%z]') or ''] == true
end

-- TIMEOUT, TICKET and ID, from position i to the end.
function submit.options(argv, i, request)
  while argv[i] do
    local word = string.upper(argv[i])
    if word == 'TIMEOUT' then
      request.timeout = args.int(argv[i + 1] or '', 1, 86400000)
      if not request.timeout then
        raise('BADARG', 'Invalid value for TIMEOUT: milliseconds, 1 to 86400000')
      end
      i = i + 2
    elseif word == 'TICKET' then
      local ticket, corr = argv[i + 1], argv[i + 2]
      if not is_ticket(ticket) then
        raise('BADARG', 'a TICKET is a key such as ks:{0}:t:<client>:<seq> or ks:{0}:mb:<client>, at most 1024 bytes')
      end
      request.ticket = ticket
      i = i + 2
      if corr and string.upper(corr) ~= 'ID' and string.upper(corr) ~= 'TIMEOUT' then
        if #corr > 64 or string.find(corr, '%s') then
          raise('BADARG', 'the word after the TICKET key has at most 64 bytes and no spaces')
        end
        request.corr = corr
        i = i + 1
      end
    elseif word == 'ID' then
      request.client, request.seq = argv[i + 1] or '', args.int(argv[i + 2] or '', 0, 9007199254740991)
      if not request.seq or #request.client > 64 or not string.find(request.client, '^%w+$') then
        raise('BADARG', 'ID takes a client id (letters and digits, at most 64) and a number')
      end
      i = i + 3
    else
      raise('BADARG', "Unexpected argument: '" .. args.printable(argv[i]) .. "'")
    end
  end
end

-- All of them: a call that is repeated must find its reply where the first one was told to put it.
function submit.all_options(argv, i, request)
  submit.options(argv, i, request)
  if request.client and not request.ticket then
    raise('BADARG', 'ID needs TICKET: the reply to a repeated call comes on the ticket')
  end
end

-- Keys in ARGV must be declared, or cluster routing and ACLs would not see them.
local declared, declared_of = {}, nil
function submit.is_declared(KEYS, key)
  if declared_of ~= KEYS then
    declared, declared_of = {}, KEYS
    for n = 1, #KEYS do
      declared[KEYS[n]] = true
    end
  end
  return declared[key] == true
end

function submit.declared(KEYS, key)
  if submit.is_declared(KEYS, key) then
    return
  end
  raise('BADARG', "key '" .. args.printable(key) .. "' is used but not among the KEYS of the call")
end

function submit.keys(KEYS, argv, i, word)
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
    submit.declared(KEYS, key)
    found[n] = key
  end
  return found, i + count + 1
end

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
local function bind(record, request)
  local inputs, names = request.inputs, request.names
  local signature = record.signature
  if not signature then
    return inputs
  end
  if #inputs ~= #signature.inputs then
    raise('BADINPUT', "model '" .. record.title .. "' takes " .. #signature.inputs .. ' inputs, ' .. shown(signature.inputs) .. '; got ' .. #inputs)
  end
  if not names then
    return inputs
  end
  local ordered = {}
  for n, name in ipairs(names) do
    local position = signature.position[name]
    if not position or ordered[position] then
      raise('BADINPUT', "model '" .. record.title .. "' takes " .. shown(signature.inputs) .. '; got ' .. quoted(names))
    end
    ordered[position] = inputs[n]
  end
  request.names = nil
  return ordered
end

local function fits(record, spec, header)
  if spec.fits[header] then
    return
  end
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
  if header then
    return header
  end
  if needed and key then
    header, problem = npy.parse(redis.call('GETRANGE', key, 0, needed - 1), total)
    if header then
      return header
    end
  end
  if key then
    raise('NOTENSOR', "input key '" .. args.printable(key) .. "' is not a tensor: " .. problem)
  end
  raise('BADNPY', 'input VALUE: ' .. problem)
end

-- Look at one input: its npy header, and its bytes where they will ride in the entry.
local function look(input)
  if input.mode == 'VALUE' then
    local size = #input.data
    if size > INLINE then
      raise('TOOBIG', 'a VALUE of ' .. size .. ' bytes: above ' .. INLINE .. ' SET it to a temporary key and name that with OWN')
    end
    input.value, input.size = input.data, size
    return parse(input.data, size)
  end
  local key = input.data
  -- One command for what is small, and that is nearly everything: a longer value shows by filling the range.
  local start = redis.pcall('GETRANGE', key, '0', input.mode == 'REF' and npy.PREFIX_END or INLINE_END)
  if type(start) == 'table' then
    if string.find(start.err, 'WRONGTYPE', 1, true) then
      raise('WRONGTYPE', "input key '" .. args.printable(key) .. "' holds something else than a tensor")
    end
    error(start, 0)
  end
  local size = #start
  if size == 0 then
    raise('NOTENSOR', "input key '" .. args.printable(key) .. "' does not exist: SET a .npy file or call AI_TENSORSET first")
  end
  if input.mode == 'REF' or size > INLINE then
    size = redis.call('STRLEN', key)
    if input.mode == 'KEY' and size > CAPTURE_MAX then
      raise('TOOBIG', "input key '" .. args.printable(key) .. "' has " .. size .. ' bytes: above ' .. CAPTURE_MAX
        .. ' no copy is taken: give it as OWN (moved) or REF (read when the job runs)')
    end
  else
    input.value = start
  end
  input.size = size
  return parse(start, size, key)
end

-- An output may replace nothing but a tensor.
function submit.writable(key)
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

-- The bitmap of this client's request number, and how long it is kept. Requests whose timeouts lie within a factor of
-- two share bitmaps, so that renewing the TTL never shortens it; a retry is the same call, with the same timeout.
local function seen(own, request)
  local span, class = SEEN_MS, 0
  while request.timeout > span do
    span, class = span * 2, class + 1
  end
  local name = own.seen .. request.client .. ':' .. class .. ':' .. math.floor(request.seq / SEEN_BLOCK)
  return name, request.seq % SEEN_BLOCK, span + jobs.REPLY_GRACE_MS
end

-- Has this number been taken? Asked before anything else: by now the keys of the first call may have been moved.
local function repeated(own, request)
  if not request.client then
    return false
  end
  local name, bit = seen(own, request)
  return redis.call('GETBIT', name, ('%d'):format(bit)) == 1
end

-- Marked only when the job is in its queue: a call that failed may be sent again.
local function take_number(own, request)
  if request.client then
    local name, bit, ms = seen(own, request)
    redis.call('SETBIT', name, ('%d'):format(bit), '1')
    redis.call('PEXPIRE', name, ('%d'):format(ms))
  end
end

-- A key that is given away cannot be another input too.
local function own_once(inputs)
  local used = {}
  for _, input in ipairs(inputs) do
    if input.mode ~= 'VALUE' then
      local mode = used[input.data]
      if mode and (mode == 'OWN' or input.mode == 'OWN') then
        raise('BADARG', "input key '" .. args.printable(input.data) .. "' is given as OWN, and as another input too")
      end
      used[input.data] = input.mode
    end
  end
end

local function room(own, stream, device, bytes)
  local queued = redis.call('XLEN', stream)
  if queued >= MAX_JOBS then
    raise('BUSY', 'queue ' .. device .. ' holds ' .. queued .. ' jobs, its limit: try again later, or add executors')
  end
  if bytes > 0 then
    local held = tonumber(redis.call('GET', own.bytes .. device) or 0) or 0
    if queued == 0 and held ~= 0 then
      redis.call('UNLINK', own.bytes .. device)
      held = 0
    end
    if held + bytes > MAX_BYTES then
      raise('BUSY', 'queue ' .. device .. ' holds ' .. held .. ' bytes, its limit is ' .. MAX_BYTES .. ': try again later, or add executors')
    end
  end
end

-- Take the inputs as they are now: inline fields of the entry, or private keys in their own slots.
local function capture(entry, inputs, expires, owns)
  local modes, inline = {}, 0
  for n, input in ipairs(inputs) do
    if input.value then
      entry[2 * inline + 3] = INLINE_FIELDS[inline + 1] or tostring(inline)
      entry[2 * inline + 4] = input.value
      inline = inline + 1
      modes[n] = 'v'
    elseif input.mode == 'REF' then
      modes[n] = 'r' .. input.data
    else
      local name = keys.capture(input.data, node.unique() .. '-' .. n)
      if input.mode == 'OWN' then
        redis.call('RENAME', input.data, name)
      else
        redis.call('COPY', input.data, name)
      end
      redis.call('PEXPIREAT', name, expires)
      modes[n] = 'c' .. name
    end
  end
  if owns then
    for _, input in ipairs(inputs) do
      if input.value and input.mode == 'OWN' then
        redis.call('UNLINK', input.data)
      end
    end
  end
  return modes
end

-- request: target, inputs {{mode, data}...}, owns (is an input OWN?), names, outputs, timeout, ticket, corr, client, seq.
-- Returns what the public function returns.
function submit.run(request)
  local own = node.keys()
  request.timeout = request.timeout or 30000
  if repeated(own, request) then
    return ''
  end
  if request.owns then
    own_once(request.inputs)
  end
  local record = catalog.find(own, request.target)
  if record.state == 'failed' then
    raise('MODELFAILED', "model '" .. record.title .. "' failed to load: " .. record.reason)
  end
  if not redis.acl_check_cmd('HGET', record.key, 'type') then
    raise('NOPERM', "this user may not use model '" .. record.title .. "'")
  end
  local inputs = bind(record, request)
  local specs = record.signature and record.signature.inputs
  local bytes = 0
  for n, input in ipairs(inputs) do
    local header = look(input)
    if specs then
      fits(record, specs[n], header)
    end
    bytes = bytes + input.size
  end
  local outputs = request.outputs
  if #outputs > 0 then
    local known = record.signature and record.signature.outputs
    if known and #known ~= #outputs then
      raise('BADINPUT', "model '" .. record.title .. "' gives " .. #known .. ' outputs, ' .. shown(known) .. '; got ' .. #outputs .. ' output keys')
    end
    for _, key in ipairs(outputs) do
      -- It will be written by an executor, which may do more than the caller.
      if not redis.acl_check_cmd('SET', key, '') then
        raise('NOPERM', "this user may not SET output key '" .. args.printable(key) .. "'")
      end
      local problem = submit.writable(key)
      if problem then
        error({ err = problem }, 0)
      end
    end
  end
  local device = record.device
  local stream = own.jobs .. device
  if bytes <= jobs.COUNTED_BYTES then
    bytes = 0
  end
  room(own, stream, device, bytes)
  local ticket = request.ticket or ''
  if own.clustered and ticket ~= '' then
    redis.call('EXISTS', ticket)
  end
  local deadline = node.now_ms() + request.timeout
  local entry = { 'h', '' }
  local modes = capture(entry, inputs, deadline + jobs.REPLY_GRACE_MS, request.owns)
  -- Several values packed in one call stand one after the other: the rest of the array that the record begins.
  entry[2] = record.head .. cmsgpack.pack(deadline, ticket, request.corr or '', modes, request.names or {}, outputs, bytes)
  local id = redis.call('XADD', stream, '*', unpack(entry))
  take_number(own, request)
  if bytes > 0 then
    redis.call('INCRBY', own.bytes .. device, bytes)
  end
  if ticket ~= '' then
    return device .. '/' .. id
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
  for i = #argv - 1, 3, -1 do
    local ticket = argv[i + 1]
    if string.sub(ticket, 1, 4) == 'ks:{' and args.keyword(argv[i]) == 'TICKET' then
      local request = {}
      if pcall(submit.options, argv, i, request) then
        jobs.push(ticket, request.corr or '', problem, node.now_ms() + jobs.REPLY_GRACE_MS)
      end
      break
    end
  end
  return redis.error_reply(problem)
end
