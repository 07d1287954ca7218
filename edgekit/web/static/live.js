// The page's WebSocket: subscribes to the view at an address, applies what comes, says how old it is.
import { apply } from "./frame.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5000;
const STALE_S = 3; // the hub speaks at least once a second

const pulse = document.getElementById("pulse");
const words = pulse.querySelector(".pulse-words");
const announcer = document.getElementById("announcer");

export function announce(sentence) {
  announcer.textContent = sentence;
}

export class Live {
  #address = "";
  #socket = null;
  #pauseMs = FIRST_PAUSE_MS;
  #heardMs = null; // of the newest frame, by performance.now()
  #aheadMs = Number(document.body.dataset.at) * 1000 - Date.now(); // the hub's clock less ours
  #held = false;
  #cutOff = false;
  onpoints = () => {};
  onwhole = () => {};

  constructor() {
    setInterval(() => this.#tellAge(), 500);
    document.addEventListener("visibilitychange", () => this.#say({ seen: !document.hidden }));
    addEventListener("online", () => this.#connect());
    // a page that is kept for the way back must not keep its socket
    addEventListener("pagehide", () => {
      if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.close();
    });
    addEventListener("pageshow", (event) => event.persisted && this.#connect());
  }

  // Now, by the hub's clock, in seconds.
  now() {
    return (Date.now() + this.#aheadMs) / 1000;
  }

  open(address) {
    this.#address = address;
    if (this.#socket?.readyState === WebSocket.OPEN) this.#say({ view: address });
    else this.#connect();
  }

  hold(held) {
    if (held === this.#held) return;
    this.#held = held;
    this.#say({ held });
  }

  #say(wish) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(wish));
  }

  #connect() {
    if (this.#socket !== null && this.#socket.readyState < WebSocket.CLOSING) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = (this.#socket = new WebSocket(`${scheme}://${location.host}/live`));
    socket.onopen = () => {
      this.#say({ seen: !document.hidden });
      this.#say({ held: this.#held });
      this.#say({ view: this.#address });
    };
    socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    socket.onclose = () => {
      if (socket !== this.#socket) return;
      setTimeout(() => this.#connect(), this.#pauseMs * (0.5 + Math.random() / 2));
      this.#pauseMs = Math.min(2 * this.#pauseMs, LONGEST_PAUSE_MS);
    };
  }

  #take(message) {
    // another edition of these scripts, or a page that is no more: begin anew
    if (message.unknown || (message.build && message.build !== document.body.dataset.build)) {
      if (document.querySelector("dialog[open]") === null) location.reload();
      return;
    }
    this.#pauseMs = FIRST_PAUSE_MS;
    this.#heardMs = performance.now();
    this.#aheadMs = message.at * 1000 - Date.now();
    apply(message);
    if (message.points) this.onpoints(message.points);
    if (message.whole) this.onwhole();
    this.#say({ applied: message.n });
    this.#tellAge();
  }

  #tellAge() {
    if (document.hidden) return;
    const began = this.#heardMs ?? 0; // until the first frame the page is as old as its loading
    const ageS = (performance.now() - began) / 1000;
    const open = this.#socket?.readyState === WebSocket.OPEN && this.#heardMs !== null;
    const fresh = open && ageS < STALE_S;
    const age = ageS < 1.5 ? "1 s old" : `${Math.round(ageS)} s old`;
    pulse.dataset.tone = fresh ? "good" : ageS < STALE_S ? "mute" : "bad";
    words.textContent = fresh ? `Live, ${age}` : ageS < STALE_S ? "Connecting" : `Cut off, ${age}`;
    if (!fresh && ageS >= STALE_S && !this.#cutOff) {
      this.#cutOff = true;
      announce("The connection to the hub is lost. What you see is getting old.");
    } else if (fresh && this.#cutOff) {
      this.#cutOff = false;
      announce("Connected to the hub again.");
    }
  }
}
