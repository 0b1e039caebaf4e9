// What a page does with its server (starlette_app.py), and what it saw, as JSON in the element `seen` once all is over.
"use strict";

async function digest(data) {
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function json(path, options) {
  const response = await fetch(path, options);
  return response.json();
}

async function upload() {
  const bytes = new Uint8Array(1000000).map((_, index) => index % 251);
  const form = new FormData();
  form.append("file", new Blob([bytes]), "page.bin");
  form.append("note", "from a page");
  const said = await json("/upload", { method: "POST", body: form });
  return { ...said, same: said.digest === (await digest(bytes)) };
}

// The server ends this answer only when it has been given a file called `release`: its beginning is here before its end is made.
async function held() {
  const reader = (await fetch("/hold")).body.pipeThrough(new TextDecoderStream()).getReader();
  const parts = [(await reader.read()).value];
  await fetch("/store/release", { method: "PUT", body: "now" });
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
  }
  return parts;
}

async function streamed() {
  const text = await (await fetch("/stream")).text();
  return text.split("\n").length;
}

// Says each message once the one before is answered; closes after the last answer. It is for the page to close: Hypercorn 0.18 takes
// the browser's answer to its own Close over HTTP/2 for one on a stream that it does not know, and its worker ends (on epoll too).
function conversation(path, messages, answersExpected = messages.length) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + path);
    const answers = [];
    const proceed = () => {
      if (answers.length === answersExpected) {
        socket.close(1000);
      } else if (answers.length < messages.length) {
        socket.send(messages[answers.length]);
      }
    };
    socket.onerror = () => reject(new Error(`no WebSocket to ${path}`));
    socket.onclose = (event) => resolve({ answers, clean: event.wasClean, code: event.code });
    socket.onopen = proceed;
    socket.onmessage = (event) => {
      answers.push(event.data);
      proceed();
    };
  });
}

async function look() {
  const picture = document.getElementById("picture");
  await picture.decode();
  const large = await (await fetch("large")).arrayBuffer();
  return {
    style: getComputedStyle(document.body).color,
    picture: [picture.naturalWidth, picture.naturalHeight],
    backend: (await json("/backend")).backend,
    greetings: await Promise.all([...Array(20).keys()].map((number) => json(`/greet?name=${number}`))),
    file: await digest(large),
    upload: await upload(),
    held: await held(),
    streamed: await streamed(),
    conversations: await Promise.all([
      conversation("/echo", ["over the ring", "é".repeat(70000)]),
      conversation("/version", [], 1),
    ]),
    protocols: [...new Set(performance.getEntries().map((entry) => entry.nextHopProtocol).filter(Boolean))],
  };
}

look()
  .catch((error) => ({ error: String(error) }))
  .then((seen) => {
    document.getElementById("seen").textContent = JSON.stringify(seen);
  });
