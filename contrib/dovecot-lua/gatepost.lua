-- Gatepost as passdb and userdb of Dovecot's own auth process; the same script for 2.3 and 2.4.
--
-- Copy to /etc/dovecot/gatepost.lua (package dovecot-auth-lua), mode 0640, group dovecot if a token stands in it. It asks an
-- http door of Gatepost's that serves "login" and "lookup". dovecot-2.3.conf and dovecot-2.4.conf beside this file have the
-- passdb and userdb blocks. docs/protocols/dovecot.md says when to take this way and when another.
--
-- What is not a clear answer is an internal failure, which mail programs hear as "try again later", never as a wrong
-- password.

-- Dovecot 2.4 can set each of these in lua_settings instead.
local settings = {
  -- The http door, without a slash at the end.
  url = "http://127.0.0.1:8420",
  -- The door's token; empty: none.
  token = "",
  -- Seconds; longer than login.deadline, so that Gatepost says "later" before Dovecot gives up.
  timeout = 10,
}

local client

-- 2.4 passes lua_settings, 2.3 passes nothing.
function script_init(given)
  for name, default in pairs(settings) do
    local value = given and given[name]
    if value ~= nil then
      settings[name] = type(default) == "number" and tonumber(value) or value
    end
  end
  -- Gatepost closes a connection after 30 s without a request: not to meet that moment, it is dropped before.
  -- One attempt: a password that was sent must not be tried again by whoever only did not hear the answer.
  if given then
    client = dovecot.http.client {
      request_timeout = settings.timeout .. "s",
      request_max_attempts = 1,
      max_idle_time = "20s",
    }
  else
    client = dovecot.http.client {
      request_timeout_msecs = settings.timeout * 1000,
      max_attempts = 1,
      max_idle_time_msecs = 20000,
    }
  end
  return 0
end

-- Whatever stands in a name or password, bytes that are not UTF-8 included, which Gatepost takes as they are.
local function json_text(value)
  local escaped = value:gsub('[%c"\\]', function(letter)
    return string.format("\\u%04x", letter:byte())
  end)
  return '"' .. escaped .. '"'
end

local function json_object(members)
  local parts = {}
  for name, value in pairs(members) do
    parts[#parts + 1] = json_text(name) .. ":" .. json_text(tostring(value))
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

local function percent_encoded(value)
  local encoded = value:gsub("[^%w%-._~]", function(letter)
    return string.format("%%%02X", letter:byte())
  end)
  return encoded
end

-- Status and body. A status of Dovecot's own (9000 and above) means that nobody answered.
local function ask(method, path, body)
  local request = client:request { url = settings.url .. path, method = method }
  request:add_header("Accept", "text/plain")
  if settings.token ~= "" then
    request:add_header("Authorization", "Bearer " .. settings.token)
  end
  if body then
    request:add_header("Content-Type", "application/json")
    request:set_payload(body)
  end
  local response = request:submit()
  return response:status(), response:payload() or ""
end

local function service_of(request)
  -- 2.4 says protocol, 2.3 says service.
  return request.protocol or request.service or ""
end

-- Lines "key=value".
local function fields_of(body)
  local fields = {}
  for key, value in body:gmatch("([^=\n]+)=([^\n]*)") do
    fields[key] = value
  end
  return fields
end

-- What goes into Dovecot's log. 400 is a mistake of this script's, 401 one of its settings: both stay failures.
local function failure(status)
  local trouble = "gatepost: " .. (status >= 9000 and "no answer" or "status " .. status)
  dovecot.i_error(trouble)
  return trouble
end

function auth_password_verify(request, password)
  local status, body = ask("POST", "/v1/login", json_object {
    username = request.user,
    -- Nothing typed is a password too, a wrong one: without the member Gatepost could not read the request.
    password = password or "",
    service = service_of(request),
    client_ip = request.remote_ip,
    session = request.session,
  })
  local fields = fields_of(body)
  if status == 200 and fields.user then
    -- userdb_ fields among them: "userdb prefetch" needs no second question.
    return dovecot.auth.PASSDB_RESULT_OK, fields
  end
  if status ~= 403 or not fields.reason then
    return dovecot.auth.PASSDB_RESULT_INTERNAL_FAILURE, failure(status)
  end
  -- Gatepost gives a code only to those who proved the password.
  if fields.code == "user_disabled" then
    return dovecot.auth.PASSDB_RESULT_USER_DISABLED, fields.reason
  elseif fields.code == "pass_expired" then
    return dovecot.auth.PASSDB_RESULT_PASS_EXPIRED, fields.reason
  elseif fields.reason == "unknown" or fields.reason == "bad-name" then
    return dovecot.auth.PASSDB_RESULT_USER_UNKNOWN, fields.reason
  end
  return dovecot.auth.PASSDB_RESULT_PASSWORD_MISMATCH, fields.reason
end

-- Where somebody lives: the fields; or nil, why not ("unknown", "barred" from what asks, "failure"), and words for the log.
local function find(request)
  local path = "/v1/lookup/userdb/" .. percent_encoded(request.user)
  local status, body = ask("GET", path .. "?service=" .. percent_encoded(service_of(request)))
  local fields = fields_of(body)
  if status == 200 and fields.user then
    return fields
  end
  if status == 403 and fields.reason then
    return nil, "barred", fields.reason
  end
  -- A door that serves no look-ups also says 404, but not this.
  if status == 404 and body:find('"value":null', 1, true) then
    return nil, "unknown", "unknown"
  end
  return nil, "failure", failure(status)
end

-- Without a password: doveadm auth lookup, proxies. There is none to give away, and Dovecot wants one: a hash that nothing
-- matches. With Kerberos there is no password to match: of all refusals only "disabled" stops that login.
function auth_passdb_lookup(request)
  local fields, why, words = find(request)
  if fields then
    return dovecot.auth.PASSDB_RESULT_OK, { user = fields.user, password = "{CRYPT}*" }
  elseif why == "barred" then
    return dovecot.auth.PASSDB_RESULT_USER_DISABLED, words
  elseif why == "unknown" then
    return dovecot.auth.PASSDB_RESULT_USER_UNKNOWN, words
  end
  return dovecot.auth.PASSDB_RESULT_INTERNAL_FAILURE, words
end

function auth_userdb_lookup(request)
  local fields, why, words = find(request)
  if fields then
    return dovecot.auth.USERDB_RESULT_OK, fields
  elseif why == "barred" or why == "unknown" then
    return dovecot.auth.USERDB_RESULT_USER_UNKNOWN, words
  end
  return dovecot.auth.USERDB_RESULT_INTERNAL_FAILURE, words
end

-- All mailboxes (doveadm -A), a page at a time.
function auth_userdb_iterate()
  local users, after = {}, ""
  while true do
    local status, body = ask("GET", "/v1/lookup/users?after=" .. percent_encoded(after))
    if status ~= 200 then
      -- A list that is not whole must not look like one.
      error(failure(status))
    end
    local before = #users
    for user in body:gmatch("[^\n]+") do
      users[#users + 1] = user
    end
    if #users == before then
      return users
    end
    after = users[#users]
  end
end
