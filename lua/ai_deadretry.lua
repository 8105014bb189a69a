--- AI_DEADRETRY: submit the job of a dead letter of this node again; the letter goes.
-- ARGV[1] id             of the letter, as AI_DEADSCAN lists it
-- ARGV[2..] options      [TIMEOUT ms]
-- Returns: a ticket to BLPOP: whoever submitted it first was told of its end already. Outputs go to its keys, if it had any
-- Errors: BADARG NOMODEL MODELFAILED WRONGTYPE NOPERM BUSY TRYAGAIN
-- Flags: allow-cross-slot-keys

local function deadretry_record(own, header)
  local record = catalog.find(own, header[jobs.KEY] .. '@' .. ('%.0f'):format(header[jobs.VERSION]))
  if record.id ~= header[jobs.MODEL] then
    raise('NOMODEL', "the version that the job was for has gone: what is called '" .. record.title .. "' now is another one")
  end
  submit.check_use(record)
  return record
end

local function deadretry_entry(fields, header)
  local entry, modes, inline = { 'h', '' }, nil, 0
  for _, mode in ipairs(header[jobs.INPUTS]) do
    if mode == 'v' then
      entry[#entry + 1] = tostring(inline)
      entry[#entry + 1] = fields[tostring(inline)]
      inline = inline + 1
    else
      modes = header[jobs.INPUTS]
    end
  end
  return entry, modes
end

-- What a graph runs this caller must be allowed to use as well.
local function deadretry_members(fields)
  if not fields.x then
    return
  end
  local ok, extra = pcall(cmsgpack.unpack, fields.x)
  if not ok or type(extra) ~= 'table' or (extra.m ~= nil and type(extra.m) ~= 'table') then
    raise('BADARG', 'the job of this dead letter brings along something that no function has written')
  end
  for _, member in ipairs(extra.m or {}) do
    local key = type(member) == 'table' and member[3]
    if type(key) ~= 'string' or not redis.acl_check_cmd('HGET', key, 'type') then
      raise('NOPERM', "this user may not use model '" .. args.printable(tostring(key)) .. "', which the job runs")
    end
  end
end

local function AI_DEADRETRY(KEYS, ARGV)
  local request = { target = ARGV[1], timeout = 30000 }
  if KEYS[1] or not request.target then
    raise('BADARG', 'AI_DEADRETRY takes no keys, and: id [TIMEOUT ms]')
  end
  options.read(ARGV, 2, request)
  if request.ticket or request.client then
    raise('BADARG', 'AI_DEADRETRY takes no TICKET and no ID: it returns a ticket')
  end
  local own = node.keys()
  local fields = dead.find(own, ARGV[1])
  if not fields then
    raise('BADARG', "no dead letter '" .. ARGV[1] .. "' on this node: list them with AI_DEADSCAN")
  end
  local header = dead.header(fields, ARGV[1])
  if not header or header[jobs.OP] ~= 'run' or not header[jobs.INPUTS][1] then
    raise('BADARG', "dead letter '" .. ARGV[1] .. "' is no job that runs a model: to load a model again, store it again")
  end
  if header[jobs.MODEL] == '0-1' then
    raise('BADARG', "dead letter '" .. ARGV[1] .. "' is a DAG, which belongs to no model: send the call again")
  end
  local record = deadretry_record(own, header)
  deadretry_members(fields)
  local bytes = dead.check_inputs(fields, header)
  request.names = header[jobs.NAMES][1] and header[jobs.NAMES] or nil
  request.outputs = header[jobs.OUTPUTS][1] and header[jobs.OUTPUTS] or nil
  if request.outputs then
    submit.check_outputs(record, request.outputs)
  end
  request.extra = fields.x
  request.priority = request.priority or string.match(fields.id or '', '^[^/@!]+(![HL])')
  local device, size = record.device .. (request.priority or ''), bytes
  if bytes <= jobs.COUNTED_BYTES then
    bytes = 0
  end
  local now = node.now_ms()
  local mark = room.check(own, room.limits(own, now), device, record, bytes, size, now)
  local deadline = now + request.timeout
  local entry, modes = deadretry_entry(fields, header)
  for _, capture in ipairs(jobs.captures(header)) do
    redis.call('PEXPIREAT', capture, ('%.0f'):format(deadline + jobs.REPLY_GRACE_MS), 'GT')
  end
  local id = submit.enter(own, device, record, request, deadline, '', entry, modes, #header[jobs.INPUTS], bytes, mark)
  redis.call('XDEL', own.dead, ARGV[1])
  return own.ticket .. device .. '/' .. id
end
