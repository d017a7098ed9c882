import { html } from "./vendor/preact-htm.js";

/** What went wrong, in the server's words. */
export const Failure = ({ message }) => html`<p class="failure"><span aria-hidden="true">!</span> ${message}</p>`;
