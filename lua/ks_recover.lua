--- KS_RECOVER: take over one job of an executor that stopped extending its lease.
-- ARGV[1] queue          the word for it (node.queue)
-- ARGV[2] consumer       who takes it over
-- ARGV[3] lease          milliseconds without a sign of life after which a job is free
-- ARGV[4] deliveries     a job delivered that often is given up instead
-- Returns: [deliveries, [id, [field, value...]]], an empty list if there is none
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function recover_give_up(own, device, id, fields, header, delivered)
  local text = 'DEADLETTER the job was given up: ' .. delivered .. ' executors in turn died or stalled while they ran it'
  if header[jobs.OP] == 'load' then
    local key, version = header[jobs.KEY], tostring(header[jobs.VERSION])
    local found = redis.pcall('HMGET', key, 'uid', version .. ':state')
    if not found.err and found[1] and found[1] .. '-' .. version == header[jobs.MODEL] and found[2] == 'loading' then
      models.failed(node.keys(), key, version, delivered .. ' executors in turn died or stalled while they loaded it')
    end
  end
  local entry = { 'id', device .. '/' .. id, 'reason', text }
  for field, value in pairs(fields) do
    -- Somebody may have written an entry with more fields than unpack() takes.
    if #entry < 4096 then
      entry[#entry + 1] = field
      entry[#entry + 1] = value
    end
  end
  redis.call('XADD', own.dead, 'MAXLEN', 1000, '*', unpack(entry))
  jobs.abandon(own, device, id, header, text)
end

local function KS_RECOVER(_, ARGV)
  local consumer, lease, limit = ARGV[2], args.int(ARGV[3] or ''), args.int(ARGV[4] or '', 1)
  if not jobs.is_queue(ARGV[1] or '') or not lease or not limit then
    raise('BADARG', 'KS_RECOVER is called by executors only')
  end
  local own, stream, device = node.queue(ARGV[1])
  local idle = redis.pcall('XPENDING', stream, jobs.GROUP, 'IDLE', lease, '-', '+', 16)
  if idle.err then
    -- After a FLUSHALL there is nothing to take over; the next heartbeat makes the group again.
    return string.find(idle.err, 'NOGROUP', 1, true) and {} or error(idle, 0)
  end
  for _, pending in ipairs(idle) do
    local id, delivered = pending[1], pending[4]
    local fields = jobs.entry(stream, id)
    local header = fields and jobs.header(fields)
    if not header then
      jobs.remove(stream, id)
    elseif delivered >= limit then
      recover_give_up(own, device, id, fields, header, delivered)
    else
      local claimed = redis.call('XCLAIM', stream, jobs.GROUP, consumer, 0, id)
      return { delivered + 1, claimed[1] }
    end
  end
  return {}
end
