--- AI_DAGEXECUTE_RO: as AI_DAGEXECUTE, but without PERSIST and SCRIPTEXECUTE: it writes no key of anybody's.
-- KEYS[1..] key          every key that ARGV names: those of LOAD and ROUTING
-- ARGV[1..] arguments    [LOAD n key...] [ROUTING key] [TIMEOUT ms] [TICKET key [corr]] [ID client seq] [USER name]
--                        [PRIORITY HIGH|NORMAL|LOW] (|> operation argument...)...
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG BADNPY BADVALUE NOMODEL MODELFAILED NOTENSOR WRONGTYPE BADINPUT BADMODEL TOOBIG BUSY NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function AI_DAGEXECUTE_RO(KEYS, ARGV)
  return dag.answered(KEYS, ARGV, true)
end
