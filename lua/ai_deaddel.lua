--- AI_DEADDEL: drop dead letters of this node, with what they have captured.
-- ARGV[1..] id           of the letters, as AI_DEADSCAN lists them; at most 1,000
-- Returns: how many there were
-- Errors: BADARG TRYAGAIN
-- Flags: allow-oom allow-cross-slot-keys

local function AI_DEADDEL(KEYS, ARGV)
  if KEYS[1] or not ARGV[1] or ARGV[1001] then
    raise('BADARG', 'AI_DEADDEL takes no keys, and: id..., at most 1000')
  end
  local own = node.keys()
  local dropped = 0
  for _, id in ipairs(ARGV) do
    local fields = dead.find(own, id)
    if fields then
      dead.drop(own, id, dead.header(fields, id))
      dropped = dropped + 1
    end
  end
  return dropped
end
