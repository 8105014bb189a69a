--- KS_FORWARD: queue a job that was submitted on another node, which the slot of its keys has left.
-- KEYS[1] key            one of the job's: its slot decides where the job runs; of a load, the model
-- ARGV[1] queue          the word for the queue here (node.queue)
-- ARGV[2] origin         tag/queue/entry of the job where it comes from: each is taken once
-- ARGV[3] deadline       of the job; 0: none
-- ARGV[4..] field        fields and values of the entry
-- Returns: the id of the new entry; empty if that origin was taken before
-- Errors: BADARG TRYAGAIN
-- Flags: allow-oom allow-cross-slot-keys

local FORWARD_MS = 3600000 -- how long the origin of a job without a deadline is remembered

local function KS_FORWARD(KEYS, ARGV)
  local key, origin, deadline = KEYS[1], ARGV[2] or '', args.int(ARGV[3] or '')
  if not key or not jobs.is_queue(ARGV[1] or '') or not string.find(origin, '^[%w_-]+/[A-Z0-9:_.!HL-]+/%d+%-%d+$') or #origin > 96
    or not deadline or ARGV[4] ~= 'h' or #ARGV % 2 == 0 or #ARGV > 4096 then
    raise('BADARG', 'KS_FORWARD is called by executors only')
  end
  local header = jobs.header({ h = ARGV[5] })
  if not header then
    raise('BADARG', 'KS_FORWARD: the entry is none of ours')
  end
  local own, stream, device = node.queue(ARGV[1])
  local mark = keys.forwarded(key, origin)
  if redis.call('EXISTS', mark) == 1 then
    return ''
  end
  local expires = deadline > 0 and deadline + jobs.REPLY_GRACE_MS or node.now_ms() + FORWARD_MS
  local entry = {}
  for i = 4, #ARGV do
    entry[#entry + 1] = ARGV[i]
  end
  local id = redis.call('XADD', stream, '*', unpack(entry))
  redis.call('SET', mark, '1', 'PXAT', ('%.0f'):format(expires))
  if header[jobs.BYTES] > 0 then
    redis.call('INCRBY', own.bytes .. device, ('%.0f'):format(header[jobs.BYTES]))
  end
  if header[jobs.OP] == 'load' then
    local version = ('%.0f'):format(header[jobs.VERSION])
    local found = redis.pcall('HMGET', key, 'uid', version .. ':state')
    if not found.err and found[2] == 'loading' and found[1] .. '-' .. version == header[jobs.MODEL] then
      redis.call('HSET', key, version .. ':load', id)
    end
  end
  return id
end
