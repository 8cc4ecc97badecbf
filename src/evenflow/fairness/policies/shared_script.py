"""The exchange with shared counters, as the Lua that Redis runs: one call, one atomic step. See shared.py.

Keys, all under one prefix, so that a Redis cluster keeps them together:
counters (hash: client -> counter), waiting (sorted set by counter: clients that wait on any server), where (hash: client
-> number of servers it waits on), at:SERVER (set: who waits there), servers (sorted set: heartbeats), numbers (hash: last
exchange applied per server), idle (sorted set by time: clients that wait nowhere), v (virtual time), last (last who left).
"""

SCRIPT = r"""
local prefix, server, number = KEYS[1], ARGV[1], tonumber(ARGV[2])
local ttl, is_new = tonumber(ARGV[3]), ARGV[4] == '1'
local content, wanted = cjson.decode(ARGV[5]), cjson.decode(ARGV[6])
local key = function(name) return prefix .. ':' .. name end
local text = function(x) return string.format('%.17g', x) end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local finite = function(written)
  local x = written and tonumber(written)
  if x and x == x and x > -math.huge and x < math.huge then return x end
  return nil
end
local counter = function(client)
  return finite(redis.call('HGET', key('counters'), client))
end
local virtual_time = function()
  local v = finite(redis.call('GET', key('v'))) or 0
  local least = redis.call('ZRANGE', key('waiting'), 0, 0, 'WITHSCORES')
  local level = nil
  if least[2] then
    level = finite(least[2])
  else
    local last = redis.call('GET', key('last'))
    level = last and counter(last)
  end
  if level and level > v then v = level end
  redis.call('SET', key('v'), text(v))
  return v
end
local set = function(client, c)
  redis.call('HSET', key('counters'), client, text(c))
  if redis.call('ZSCORE', key('waiting'), client) then
    redis.call('ZADD', key('waiting'), text(c), client)
  else
    redis.call('ZADD', key('idle'), text(now), client)
  end
end
local join = function(client, lifts)
  if redis.call('SADD', key('at:' .. server), client) == 0 then return end
  if redis.call('HINCRBY', key('where'), client, 1) > 1 then return end
  local v = virtual_time()
  local c = counter(client) or v
  if lifts and c < v then c = v end
  redis.call('HSET', key('counters'), client, text(c))
  redis.call('ZADD', key('waiting'), text(c), client)
  redis.call('ZREM', key('idle'), client)
end
local leave = function(at, client)
  if redis.call('SREM', key('at:' .. at), client) == 0 then return end
  if redis.call('HINCRBY', key('where'), client, -1) > 0 then return end
  virtual_time()
  redis.call('HDEL', key('where'), client)
  redis.call('ZREM', key('waiting'), client)
  redis.call('ZADD', key('idle'), text(now), client)
  if redis.call('ZCARD', key('waiting')) == 0 then redis.call('SET', key('last'), client) end
end

for _, dead in ipairs(redis.call('ZRANGEBYSCORE', key('servers'), '-inf', '(' .. text(now - ttl))) do
  if dead ~= server then
    for _, client in ipairs(redis.call('SMEMBERS', key('at:' .. dead))) do leave(dead, client) end
    redis.call('ZREM', key('servers'), dead)
  end
end
local is_known = redis.call('ZSCORE', key('servers'), server)
if not is_known and not is_new then return {'unknown'} end
redis.call('ZADD', key('servers'), text(now), server)
if not is_known then
  for _, pair in ipairs(content.known) do
    if not counter(pair[1]) then set(pair[1], pair[2]) end
  end
end
if number > tonumber(redis.call('HGET', key('numbers'), server) or '0') then
  redis.call('HSET', key('numbers'), server, number)
  for _, pair in ipairs(content.charges) do
    set(pair[1], (counter(pair[1]) or virtual_time()) + pair[2])
  end
  for _, client in ipairs(content.left) do leave(server, client) end
  if is_known then
    for _, client in ipairs(content.joined) do join(client, true) end
  end
end
if not is_known then
  for _, client in ipairs(content.waiting) do join(client, false) end
end
local v = virtual_time()
for _, client in ipairs(redis.call('ZRANGEBYSCORE', key('idle'), '-inf', text(now - 300), 'LIMIT', 0, 100)) do
  if (counter(client) or v) <= v then
    redis.call('HDEL', key('counters'), client)
    redis.call('ZREM', key('idle'), client)
  else
    redis.call('ZADD', key('idle'), text(now), client)
  end
end
local reply = {'ok', text(v)}
for _, client in ipairs(wanted) do
  local c = counter(client)
  reply[#reply + 1] = c and text(c) or false
end
return reply
"""
