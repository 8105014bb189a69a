--- AI_TRIGGERSCAN: list the triggers.
-- ARGV[1] cursor         0 to begin
-- ARGV[2..] options      [COUNT n]
-- Returns: [next cursor, [[name, on, source, target, state]...]]; over when the next cursor is 0
-- Errors: BADARG
-- Flags: no-writes allow-cross-slot-keys

local function AI_TRIGGERSCAN(_, ARGV)
  local cursor, word, amount = ARGV[1] or '', ARGV[2], ARGV[3]
  local count = word and args.int(amount or '', 1, 1000) or 100
  if not string.find(cursor, '^%d+$') or #cursor > 20 or (word and args.keyword(word) ~= 'COUNT')
    or (word and not args.int(amount or '', 1, 1000)) or ARGV[4] then
    raise('BADARG', 'AI_TRIGGERSCAN takes: cursor [COUNT 1..1000]')
  end
  local page = redis.call('HSCAN', node.keys().triggers, cursor, 'COUNT', count)
  local list = {}
  for i = 1, #page[2], 2 do
    local record = triggers.decode(page[2][i + 1])
    if record then
      local what = record.on == 'schedule' and ('%.0f'):format(record.every or 0) or record.source
      list[#list + 1] = { page[2][i], record.on, what, record.run[1], record.state }
    end
  end
  return { page[1], list }
end
