--- @requires args guard
-- The options of what runs something: TIMEOUT, TICKET, ID, USER and PRIORITY.

local options = {}

-- Keywords are nearly always sent in capitals: then a look-up tells, and no other string is made.
local OPTION_WORDS = { TIMEOUT = 'TIMEOUT', TICKET = 'TICKET', ID = 'ID', USER = 'USER', PRIORITY = 'PRIORITY' }

-- What stands behind the device in the word for a queue (node.queue).
local PRIORITIES = { HIGH = '!H', NORMAL = false, LOW = '!L' }

-- The kinds of private names (docs/protocol.md section 2) that are lists for replies.
local TICKETS = { t = true, mb = true, ticket = true }

local function option_word(text)
  return OPTION_WORDS[text] or OPTION_WORDS[args.keyword(text)]
end

local function is_ticket(name)
  return name ~= nil and #name <= 1024 and TICKETS[string.match(name, '^ks:{[^}]+}:(%l+)%f[:%z]') or ''] == true
end

-- A function cannot see who calls it, but whether the caller may read the key that stands for this user.
local function check_user(name)
  if not redis.acl_check_cmd('GET', 'ks:user:' .. name) then
    raise('NOPERM', "the caller is not user '" .. name .. "': its ACL lacks %R~ks:user:" .. name .. ', which `keyside acl` gives')
  end
end

-- Reads them from position i to the end into request: timeout, ticket, corr, client, seq, user, priority.
function options.read(argv, i, request)
  local text = argv[i]
  while text do
    local word = option_word(text)
    if word == 'TICKET' then
      local ticket, corr = argv[i + 1], argv[i + 2]
      if not is_ticket(ticket) then
        raise('BADARG', 'a TICKET is a key such as ks:{0}:t:<client>:<seq> or ks:{0}:mb:<client>, at most 1024 bytes')
      end
      request.ticket = ticket
      i = i + 2
      if corr and not option_word(corr) then
        if #corr > 64 or string.find(corr, '%s') then
          raise('BADARG', 'the word after the TICKET key has at most 64 bytes and no spaces')
        end
        request.corr = corr
        i = i + 1
      end
    elseif word == 'ID' then
      request.client, request.seq = argv[i + 1] or '', args.int(argv[i + 2] or '', 0, 9007199254740991)
      if not request.seq or #request.client > 64 or not string.find(request.client, '^%w+$') then
        raise('BADARG', 'ID takes a client id (letters and digits, at most 64) and a number')
      end
      i = i + 3
    elseif word == 'USER' then
      request.user = argv[i + 1] or ''
      if #request.user > 64 or not string.find(request.user, '^[%w_.:-]+$') then
        raise('BADARG', 'USER takes the name of a user: 1 to 64 letters, digits and _.:-')
      end
      i = i + 2
    elseif word == 'PRIORITY' then
      request.priority = PRIORITIES[args.keyword(argv[i + 1] or '')]
      if request.priority == nil then
        raise('BADARG', 'PRIORITY is HIGH, NORMAL or LOW')
      end
      i = i + 2
    elseif word == 'TIMEOUT' then
      request.timeout = args.int(argv[i + 1] or '', 1, 86400000)
      if not request.timeout then
        raise('BADARG', 'Invalid value for TIMEOUT: milliseconds, 1 to 86400000')
      end
      i = i + 2
    else
      raise('BADARG', "Unexpected argument: '" .. args.printable(text) .. "'")
    end
    text = argv[i]
  end
end

-- All of them: a call that is repeated must find its reply where the first one was told to put it.
function options.read_all(argv, i, request)
  options.read(argv, i, request)
  if request.client and not request.ticket then
    raise('BADARG', 'ID needs TICKET: the reply to a repeated call comes on the ticket')
  end
  if request.user then
    check_user(request.user)
  end
end

-- Where the caller of a call that was refused wants its reply, as ticket and corr; nil if it did not say.
function options.ticket(argv)
  for i = #argv - 1, 3, -1 do
    if string.sub(argv[i + 1], 1, 4) == 'ks:{' and args.keyword(argv[i]) == 'TICKET' then
      local request = {}
      if pcall(options.read, argv, i, request) then
        return request.ticket, request.corr or ''
      end
      return nil
    end
  end
end
