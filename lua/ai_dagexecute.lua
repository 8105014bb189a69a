--- AI_DAGEXECUTE: run several operations as one job, on tensors that only it knows; what PERSIST names is written at its end.
-- KEYS[1..] key          every key that ARGV names: those of LOAD, PERSIST and ROUTING, and KEYS of scripts
-- ARGV[1..] arguments    [LOAD n key...] [PERSIST n key...] [ROUTING key] [TIMEOUT ms] [TICKET key [corr]] [ID client seq]
--                        [USER name] [PRIORITY HIGH|NORMAL|LOW] (|> operation argument...)...
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG BADNPY BADVALUE NOMODEL MODELFAILED NOTENSOR WRONGTYPE BADINPUT BADMODEL TOOBIG BUSY NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function AI_DAGEXECUTE(KEYS, ARGV)
  return dag.answered(KEYS, ARGV, false)
end
