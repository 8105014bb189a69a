--- AI_TRIGGERINFO: what a trigger has done on this node.
-- KEYS[1] key            the trigger
-- ARGV[1] word           [RESETSTAT]
-- Returns: fired, done, errors, dropped, coalesced, inflight, last_error, last_error_ms, last_ms as a flat list; RESETSTAT: OK
-- Errors: BADARG NOTRIGGER WRONGTYPE
-- Flags: allow-oom allow-cross-slot-keys

local function AI_TRIGGERINFO(KEYS, ARGV)
  local key, word = KEYS[1], ARGV[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TRIGGERINFO': give the trigger's name as the one key")
  end
  if word and (args.keyword(word) ~= 'RESETSTAT' or ARGV[2]) then
    raise('BADARG', "unsupported subcommand '" .. args.printable(word) .. "': RESETSTAT")
  end
  triggers.existing(key)
  local own = node.keys()
  if word then
    redis.call('UNLINK', own.tstats .. key)
    return redis.status_reply('OK')
  end
  -- Counters that somebody spoilt are none: a nil would cut the reply short.
  local function counter(text)
    return args.int(text or '') or 0
  end
  local got = redis.call('HMGET', own.tstats .. key, 'fired', 'done', 'errors', 'dropped', 'coalesced', 'last_error', 'last_error_ms', 'last_ms')
  local inflight = redis.call('ZCOUNT', own.inflight .. key, ('%.0f'):format(node.now_ms()), '+inf')
  return {
    'fired', counter(got[1]), 'done', counter(got[2]), 'errors', counter(got[3]), 'dropped', counter(got[4]), 'coalesced', counter(got[5]),
    'inflight', inflight, 'last_error', got[6] or '', 'last_error_ms', counter(got[7]), 'last_ms', counter(got[8]),
  }
end
