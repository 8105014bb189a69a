--- @requires jobs keys
-- The numbers of requests that were accepted, so that a call that is sent again does not run twice.

local seen = {}

local SEEN_BLOCK = 8192
local SEEN_MS = 60000

-- client -> the bitmap that its last number was in. Only what would be worked out anew, and bounded.
local bitmaps, bitmaps_count = {}, 0
local BITMAPS_MAX = 4096

-- Requests whose timeouts lie within a factor of two share bitmaps, so that renewing the TTL never shortens it; a retry is
-- the same call, with the same timeout.
local function bitmap_of(own, request)
  local client, seq = request.client, request.seq
  local block = (seq - seq % SEEN_BLOCK) / SEEN_BLOCK
  local known = bitmaps[client]
  if known and known.block == block and known.timeout == request.timeout and known.own == own then
    return known
  end
  local span, class = SEEN_MS, 0
  while request.timeout > span do
    span, class = span * 2, class + 1
  end
  if not known then
    if bitmaps_count >= BITMAPS_MAX then
      bitmaps, bitmaps_count = {}, 0
    end
    bitmaps_count = bitmaps_count + 1
  end
  local found = {
    block = block, timeout = request.timeout, own = own,
    name = own.seen .. client .. ':' .. class .. ':' .. ('%d'):format(block),
    ms = ('%d'):format(span + jobs.REPLY_GRACE_MS),
  }
  bitmaps[client] = found
  return found
end

-- Whether the number of a request has been taken. Asked before anything else: by then the keys of the first call may
-- have been moved.
function seen.taken(own, request)
  if own.clustered and request.key then
    return redis.call('EXISTS', keys.seen(request.key, request.client, request.seq)) == 1
  end
  local bitmap = bitmap_of(own, request)
  return redis.call('GETBIT', bitmap.name, ('%d'):format(request.seq % SEEN_BLOCK)) == 1
end

-- Takes it, when the job is in its queue: a call that failed may be sent again.
function seen.take(own, request)
  if own.clustered and request.key then
    -- In the slot of its keys: should that move, whoever serves it then knows the request.
    local ms = ('%d'):format(request.timeout > SEEN_MS and request.timeout + jobs.REPLY_GRACE_MS or SEEN_MS + jobs.REPLY_GRACE_MS)
    redis.call('SET', keys.seen(request.key, request.client, request.seq), '1', 'PX', ms)
    return
  end
  local bitmap = bitmap_of(own, request)
  redis.call('SETBIT', bitmap.name, ('%d'):format(request.seq % SEEN_BLOCK), '1')
  redis.call('PEXPIRE', bitmap.name, bitmap.ms)
end
