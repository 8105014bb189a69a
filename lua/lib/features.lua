--- @requires guard args dtypes limits npy numbers strings
-- Inputs that are gathered where they live: fields of hashes, ranges of lists and sorted sets, numbers in strings, rows of
-- a tensor. `read` looks at the form only; `value` reads the keys, in the call that submits, and makes an npy value of it.
-- The other members are for these two: Lua allows 200 locals to the whole library.

local features = {}

features.GATHERED = 32768 -- bytes at most, as for a VALUE
-- `unpack` fails between 7,000 and 8,000 values.
features.UNPACKED = 4000

features.WORDS = 'HASH, LIST, ZSET, NUMBERS or ROWS'

features.FORMS = {
  HASH = 'HASH dtype n key... m field... [DEFAULT value | DEFAULTS m value...]',
  LIST = 'LIST dtype key start stop',
  ZSET = 'ZSET dtype key start stop SCORES|MEMBERS [REV]',
  NUMBERS = 'NUMBERS dtype n key... [DEFAULT value | DEFAULTS n value...]',
  ROWS = 'ROWS key n index...',
}

function features.bad_form(word, problem)
  raise('BADARG', word .. ': ' .. problem .. '; it is written ' .. features.FORMS[word])
end

function features.quote(text)
  return "'" .. args.printable(text) .. "'"
end

-- --- the form

-- Where in argv the items behind a count are: the position of the first, how many, and the position behind them.
function features.counted_items(argv, i, word, what)
  local count = args.int(argv[i] or '', 1, limits.VALUES)
  if not count then
    features.bad_form(word, 'a number of ' .. what .. ', 1 to ' .. limits.VALUES .. ', expected, got ' .. features.quote(argv[i] or ''))
  elseif not argv[i + count] then
    features.bad_form(word, count .. ' ' .. what .. ' announced, and only ' .. (#argv - i) .. ' arguments follow')
  end
  return i + 1, count, i + count + 1
end

function features.read_keys(feature, KEYS, argv, i, check)
  feature.key, feature.keys, i = features.counted_items(argv, i, feature.word, 'keys')
  if check then
    for n = feature.key, i - 1 do
      check(KEYS, argv[n])
    end
  end
  return i
end

function features.read_key(feature, KEYS, argv, i, check)
  if not argv[i] then
    features.bad_form(feature.word, 'a key expected')
  elseif check then
    check(KEYS, argv[i])
  end
  feature.key, feature.keys = i, 1
  return i + 1
end

function features.read_dtype(feature, argv, i)
  local name = args.keyword(argv[i] or '')
  feature.dtype = dtypes.by_name[name]
  if not feature.dtype and name ~= 'AUTO' then
    features.bad_form(feature.word, 'no dtype ' .. features.quote(argv[i] or '') .. ', which is AUTO, for what the model takes, or one of ' .. dtypes.names)
  end
  return i + 1
end

-- One value for all that is missing, or one for each of `count`.
function features.read_defaults(feature, argv, i, count)
  local word = args.keyword(argv[i] or '')
  if word == 'DEFAULT' then
    feature.default = argv[i + 1] or features.bad_form(feature.word, 'a value expected behind DEFAULT')
    return i + 2
  elseif word == 'DEFAULTS' then
    local given
    feature.defaults, given, i = features.counted_items(argv, i + 1, feature.word, 'defaults')
    if given ~= count then
      features.bad_form(feature.word, given .. ' DEFAULTS for ' .. count .. ' values')
    end
  end
  return i
end

function features.read_range(feature, argv, i)
  feature.start, feature.stop = argv[i], argv[i + 1]
  if not feature.stop then
    features.bad_form(feature.word, 'start and stop expected behind the key')
  end
  return i + 2
end

features.READERS = {
  HASH = function(feature, KEYS, argv, i, check)
    i = features.read_keys(feature, KEYS, argv, features.read_dtype(feature, argv, i), check)
    feature.field, feature.fields, i = features.counted_items(argv, i, 'HASH', 'fields')
    return features.read_defaults(feature, argv, i, feature.fields)
  end,
  NUMBERS = function(feature, KEYS, argv, i, check)
    i = features.read_keys(feature, KEYS, argv, features.read_dtype(feature, argv, i), check)
    return features.read_defaults(feature, argv, i, feature.keys)
  end,
  LIST = function(feature, KEYS, argv, i, check)
    return features.read_range(feature, argv, features.read_key(feature, KEYS, argv, features.read_dtype(feature, argv, i), check))
  end,
  ZSET = function(feature, KEYS, argv, i, check)
    i = features.read_range(feature, argv, features.read_key(feature, KEYS, argv, features.read_dtype(feature, argv, i), check))
    local what = args.keyword(argv[i] or '')
    if what ~= 'SCORES' and what ~= 'MEMBERS' then
      features.bad_form('ZSET', 'SCORES or MEMBERS expected, got ' .. features.quote(argv[i] or ''))
    end
    feature.scores = what == 'SCORES'
    feature.rev = args.keyword(argv[i + 1] or '') == 'REV'
    return feature.rev and i + 2 or i + 1
  end,
  ROWS = function(feature, KEYS, argv, i, check)
    i = features.read_key(feature, KEYS, argv, i, check)
    feature.index, feature.count, i = features.counted_items(argv, i, 'ROWS', 'indices')
    return i
  end,
}

--- Reads the spec at position i of argv -> what `value` takes, and the position behind it; nil: no spec begins there.
-- `check(KEYS, key)` raises where a key may not be named; nil: any may.
function features.read(KEYS, argv, i, check)
  local word = args.keyword(argv[i] or '')
  local reader = features.READERS[word]
  if not reader then
    return nil
  end
  local feature = { word = word, argv = argv }
  return feature, reader(feature, KEYS, argv, i + 1, check)
end

-- --- the value

function features.refuse_size(feature, size)
  if feature.word == 'ROWS' then
    raise('TOOBIG', ('ROWS of %s: %.0f bytes, more than %d: ask for fewer rows, or give the whole tensor as REF')
      :format(features.quote(feature.argv[feature.key]), size, features.GATHERED))
  end
  raise('TOOBIG', ('%s: %s; at most %d elements and %d bytes are gathered in a call: write them as a tensor (AI_TENSORSET or '
    .. 'SET of a .npy file) and give that as KEY'):format(feature.word, size, limits.VALUES, features.GATHERED))
end

-- Before anything is read, so that nobody waits for what is refused.
function features.check_size(feature, count)
  if count > limits.VALUES or count * feature.dtype.itemsize + 128 > features.GATHERED then
    features.refuse_size(feature, ('%.0f elements of %s'):format(count, feature.dtype.name))
  end
end

-- What a command gave, or an error that names the key.
-- `...`: the command without its key.
function features.got(key, what, reply, ...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  elseif string.find(reply.err, 'WRONGTYPE', 1, true) then
    raise('WRONGTYPE', 'key ' .. features.quote(key) .. ' holds something else than ' .. what)
  end
  local command = ...
  if not redis.acl_check_cmd(command, key, select(2, ...)) then
    raise('NOPERM', 'this user may not ' .. command .. ' key ' .. features.quote(key))
  end
  error(reply, 0)
end

function features.missing(text, feature)
  raise('NOFEATURE', text .. (feature.word == 'HASH' and ', and there is no DEFAULT for it' or ''))
end

function features.default_of(feature, n)
  return feature.default or (feature.defaults and feature.argv[feature.defaults + n - 1])
end

-- Each of these gives the texts of the elements, the shape, and what the i-th text is, for errors.

function features.gather_hash(feature)
  local argv, first, fields = feature.argv, feature.field, feature.fields
  features.check_size(feature, feature.keys * fields)
  local texts, filled = nil, {}
  for n = 0, feature.keys - 1 do
    local key = argv[feature.key + n]
    for from = 0, fields - 1, features.UNPACKED do
      local count = math.min(features.UNPACKED, fields - from)
      local values = redis.pcall('HMGET', key, unpack(argv, first + from, first + from + count - 1))
      features.got(key, 'a hash', values, 'HMGET', 'f')
      for i = 1, count do
        if not values[i] then
          local field = argv[first + from + i - 1]
          values[i] = features.default_of(feature, from + i)
          if not values[i] and redis.call('EXISTS', key) == 0 then
            features.missing('there is no hash ' .. features.quote(key) .. ' to take field ' .. features.quote(field) .. ' from', feature)
          elseif not values[i] then
            features.missing('hash ' .. features.quote(key) .. ' has no field ' .. features.quote(field), feature)
          end
          filled[n * fields + from + i] = true
        end
      end
      if not texts then
        texts = values
      else
        local before = n * fields + from
        for i = 1, count do
          texts[before + i] = values[i]
        end
      end
    end
  end
  return texts, { feature.keys, fields }, function(i)
    local at = (i - 1) % fields
    local what = 'field ' .. features.quote(argv[first + at]) .. ' of hash ' .. features.quote(argv[feature.key + (i - 1 - at) / fields])
    return filled[i] and 'the default of ' .. what or what
  end
end

function features.gather_numbers(feature)
  local argv, texts, filled = feature.argv, {}, {}
  features.check_size(feature, feature.keys)
  for n = 1, feature.keys do
    local key = argv[feature.key + n - 1]
    local text = redis.pcall('GETRANGE', key, '0', '32768')
    features.got(key, 'a string', text, 'GETRANGE', '0', '0')
    if text == '' and redis.call('EXISTS', key) == 0 then
      text = features.default_of(feature, n) or features.missing('there is no key ' .. features.quote(key), feature)
      filled[n] = true
    end
    texts[n] = text
  end
  return texts, { 1, feature.keys }, function(i)
    return (filled[i] and 'the default of key ' or 'key ') .. features.quote(argv[feature.key + i - 1])
  end
end

function features.edge(feature, text, total)
  local digits = string.match(text, '^%-?(%d+)$')
  local number = digits and args.int(digits)
  if not number then
    features.bad_form(feature.word, 'start and stop are whole numbers, got ' .. features.quote(text))
  end
  return string.sub(text, 1, 1) == '-' and number > 0 and total - number or number
end

-- The part of a range that exists among so many elements: the first of them and how many, from 0 on.
function features.range_of(feature, total)
  local from = math.max(features.edge(feature, feature.start, total), 0)
  return from, math.max(math.min(features.edge(feature, feature.stop, total), total - 1) - from + 1, 0)
end

function features.gather_list(feature)
  local key = feature.argv[feature.key]
  local total = redis.pcall('LLEN', key)
  features.got(key, 'a list', total, 'LLEN')
  if total == 0 then
    features.missing('there is no list ' .. features.quote(key), feature)
  end
  local from, count = features.range_of(feature, total)
  features.check_size(feature, count)
  local texts = count > 0 and redis.pcall('LRANGE', key, from, from + count - 1) or {}
  features.got(key, 'a list', texts, 'LRANGE', '0', '0')
  return texts, { 1, count }, function(i)
    return ('element %.0f of list '):format(from + i - 1) .. features.quote(key)
  end
end

-- A score as digits: the server may write a whole one with an exponent, which is no way to write an integer.
function features.whole_score(text)
  local x = string.find(text, 'e', 1, true) and tonumber(text)
  return x and x == math.floor(x) and ('%.0f'):format(x) or text
end

function features.gather_zset(feature)
  local key = feature.argv[feature.key]
  local total = redis.pcall('ZCARD', key)
  features.got(key, 'a sorted set', total, 'ZCARD')
  if total == 0 then
    features.missing('there is no sorted set ' .. features.quote(key), feature)
  end
  local from, count = features.range_of(feature, total)
  features.check_size(feature, count)
  local words = { feature.rev and 'REV' or nil }
  words[#words + 1] = feature.scores and 'WITHSCORES' or nil
  local found = count > 0 and redis.pcall('ZRANGE', key, from, from + count - 1, unpack(words)) or {}
  features.got(key, 'a sorted set', found, 'ZRANGE', '0', '0')
  local texts = found
  if feature.scores then
    texts = {}
    for n = 1, count do
      local text = found[2 * n]
      texts[n] = feature.dtype.kind == 'float' and text or features.whole_score(text)
    end
  end
  return texts, { 1, count }, function(i)
    if feature.scores then
      return 'the score of ' .. features.quote(found[2 * i - 1]) .. ' in sorted set ' .. features.quote(key)
    end
    return ('the member at rank %.0f of sorted set '):format(from + i - 1) .. features.quote(key)
  end
end

function features.gather(feature)
  if feature.word == 'HASH' then
    return features.gather_hash(feature)
  elseif feature.word == 'NUMBERS' then
    return features.gather_numbers(feature)
  elseif feature.word == 'LIST' then
    return features.gather_list(feature)
  end
  return features.gather_zset(feature)
end

-- Rows of a tensor as they lie in its key: descr, shape and data.
function features.rows_of(feature)
  local argv, key = feature.argv, feature.argv[feature.key]
  if not redis.acl_check_cmd('GETRANGE', key, '0', '0') then
    raise('NOPERM', 'this user may not GETRANGE key ' .. features.quote(key))
  end
  local header = npy.inspect(key)
  local rows = header.shape[1]
  if not rows then
    raise('BADSHAPE', 'key ' .. features.quote(key) .. ' holds a 0-d tensor, which has no rows')
  end
  local width = rows > 0 and header.nbytes / rows or 0
  if feature.count * width + 128 > features.GATHERED then
    features.refuse_size(feature, feature.count * width)
  end
  local parts = {}
  for n = 1, feature.count do
    local text = argv[feature.index + n - 1]
    local index = args.int(text, 0, rows - 1)
    if not index then
      raise('BADVALUE', ('index %d of ROWS, %s, is not a row of %s: '):format(n, features.quote(text), features.quote(key))
        .. (rows > 0 and ('they are 0 to %.0f'):format(rows - 1) or 'it has none'))
    end
    if width > 0 then
      local at = header.offset + index * width
      parts[n] = redis.call('GETRANGE', key, ('%.0f'):format(at), ('%.0f'):format(at + width - 1))
    end
  end
  local shape = { feature.count }
  for n = 2, #header.shape do
    shape[n] = header.shape[n]
  end
  return header.descr, shape, table.concat(parts)
end

function features.known_dtype(feature, spec)
  local dtype = spec and dtypes.by_name[spec.dtype]
  if not dtype then
    raise('BADARG', feature.word .. ' with dtype AUTO: what the model takes is not known, since '
      .. (spec and 'its signature does not say' or 'it is still loading') .. '; name a dtype, one of ' .. dtypes.names)
  end
  return dtype
end

--- The npy value of what `read` gave, as its keys are now; `spec` of the signature, if known.
function features.value(feature, spec)
  local descr, shape, data
  if feature.word == 'ROWS' then
    descr, shape, data = features.rows_of(feature)
  else
    feature.dtype = feature.dtype or features.known_dtype(feature, spec)
    local dtype, texts, named = feature.dtype, nil, nil
    texts, shape, named = features.gather(feature)
    descr = dtype.descr
    if dtype.kind == 'string' then
      local width
      data, width = strings.encode(texts, 1, #texts, features.GATHERED - 128, named)
      descr = descr .. width
    else
      data = numbers.encode(dtype, texts, 1, #texts, named)
    end
  end
  -- What a model takes that works on one vector at a time.
  if #shape == 2 and shape[1] == 1 and spec and spec.shape and #spec.shape == 1 then
    shape = { shape[2] }
  end
  local value = npy.header(descr, shape) .. data
  if #value > features.GATHERED then
    features.refuse_size(feature, feature.word == 'ROWS' and #value or #value .. ' bytes')
  end
  return value
end
