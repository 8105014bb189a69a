--- KS_REFRESH: make the catalog agree with model keys of this node: those that came with their slots, or went without AI_MODELDEL.
-- ARGV[1..] name         of the models
-- Returns: [how many were not as their keys say, [names that are not on this node]]
-- Errors: BADARG TRYAGAIN
-- Flags: allow-cross-slot-keys

local function KS_REFRESH(_, ARGV)
  if not ARGV[1] then
    raise('BADARG', 'KS_REFRESH takes: name...')
  end
  local own = node.keys()
  local count, elsewhere = 0, {}
  for _, name in ipairs(ARGV) do
    if not node.is_local(name) then
      elsewhere[#elsewhere + 1] = name
    elseif catalog.refresh(own, name) then
      count = count + 1
    end
  end
  return { count, elsewhere }
end
