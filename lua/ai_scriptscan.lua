--- AI_SCRIPTSCAN: list the scripts.
-- ARGV[1] cursor         0 to begin; left out: everything in one reply, at most 1,000
-- ARGV[2..] options      [COUNT n]
-- Returns: [[name, tag]...], or with a cursor [next cursor, [[name, tag]...]]
-- Errors: BADARG SCANLIMIT
-- Flags: no-writes allow-cross-slot-keys

local function AI_SCRIPTSCAN(_, ARGV)
  return kinds.scan(ARGV, true, 'AI_SCRIPTSCAN')
end
