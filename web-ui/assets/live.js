// Keeps the page live: each event is named after the element that it replaces the content of.
"use strict";
const connection = document.getElementById("connection");
const say = (word, state) => {
  connection.textContent = word;
  connection.className = "state " + state;
};
const events = new EventSource("/live");
events.onopen = () => say("live", "good");
events.onerror = () => {
  say("reconnecting", "busy");
  // The browser gives up for good when the session has ended: then the page shows the login.
  if (events.readyState === EventSource.CLOSED) location.reload();
};
for (const name of ["summary", "pods", "images", "volumes", "networks", "services"]) {
  events.addEventListener(name, (event) => {
    document.getElementById(name).innerHTML = event.data;
  });
}
