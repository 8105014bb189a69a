--- AI_DEADSCAN: list the dead letters of this node, the newest first: jobs that were given up.
-- ARGV[1] cursor         0 to begin
-- ARGV[2..] options      [COUNT n] [MODEL name[@version]]
-- Returns: [next cursor, [letter...]], over when the cursor is 0; each letter as a flat list: id; job, its id; when, in ms; op, run or
--   load; model, as name@version; deliveries, n; executors, [those that died or stalled, as far as known]; reason
-- Errors: BADARG TRYAGAIN
-- Flags: no-writes allow-cross-slot-keys

-- Each letter has the inputs of its job in it: few at a time.
local DEADSCAN_MOST = 100

local function deadscan_parsed(argv)
  local cursor, count, model = argv[1] or '', 20, nil
  local i = 2
  while argv[i] do
    local word = args.keyword(argv[i])
    if word == 'COUNT' then
      count = args.int(argv[i + 1] or '', 1, DEADSCAN_MOST)
    elseif word == 'MODEL' then
      model = argv[i + 1]
    end
    if not argv[i + 1] or not count or (word ~= 'COUNT' and word ~= 'MODEL') then
      raise('BADARG', 'AI_DEADSCAN takes: cursor [COUNT 1..' .. DEADSCAN_MOST .. '] [MODEL name[@version]]')
    end
    i = i + 2
  end
  if cursor ~= '0' and not jobs.is_id(cursor) then
    raise('BADARG', 'AI_DEADSCAN: the cursor is 0 to begin, then what the last call returned')
  end
  return cursor, count, model
end

local function AI_DEADSCAN(_, ARGV)
  local cursor, count, model = deadscan_parsed(ARGV)
  local found = redis.call('XREVRANGE', node.keys().dead, cursor == '0' and '+' or '(' .. cursor, '-', 'COUNT', count)
  local letters = {}
  for _, one in ipairs(found) do
    local fields = {}
    for i = 1, #one[2], 2 do
      fields[one[2][i]] = one[2][i + 1]
    end
    local letter, header = dead.described(one[1], fields)
    if not model or letter[10] == model or (header and header[jobs.KEY] == model) then
      letters[#letters + 1] = letter
    end
  end
  return { #found == count and found[count][1] or '0', letters }
end
